"""What a client asks of a turn, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass

SessionKey = str | int
"""A session's name. The number 77 (Triton's ``sequence_id``) and the string "77" are different sessions."""


@dataclass(frozen=True)
class TurnRequest:
    """One turn: what is fed, and how the answer is sampled. Exactly one of ``text`` and ``input_ids``, unless the
    request only ends a session.

    A turn without ``session_key`` is one-shot: its state is dropped when it ends. ``temperature`` 0 is greedy;
    ``top_k`` 0 and ``top_p`` 1 are off. ``session_tokens`` is what the client believes the session has been fed.
    ``timeout`` is in seconds from submission; a turn past it fails and is rolled back.
    """

    text: str | None = None
    input_ids: tuple[int, ...] | None = None
    chat: bool = False
    system: str | None = None
    session_key: SessionKey | None = None
    session_start: bool = False
    session_end: bool = False
    session_tokens: int | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    random_seed: int | None = None
    stop_words: tuple[str, ...] = ()
    end_id: int | None = None
    ignore_eos: bool = False
    return_log_probs: bool = False
    timeout: float | None = None
    request_id: str = ""


@dataclass(frozen=True)
class TurnOutput:
    """What is new since the turn's last output; ``finish_reason`` is empty until the last one of a turn.

    Then it is ``stop`` (end of sequence or a stop word), ``length`` (``max_tokens``) or ``cancelled``.
    ``session_tokens`` counts the tokens that the session has been fed (the last sampled one is pending).
    """

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: str
    num_input_tokens: int
    num_output_tokens: int
    session_tokens: int
