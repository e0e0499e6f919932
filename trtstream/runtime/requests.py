"""A turn's request and its outputs. `request_fields` describes the same fields as tensors."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from trtstream.sessions.records import SessionKey


@dataclass(frozen=True)
class TurnRequest:
    """One turn: its text or tokens, and how the answer is sampled. Exactly one of ``text``, ``input_ids`` and
    ``messages``, unless the request only ends a session. ``messages`` is JSON, as `messages.read_messages` reads it.

    A turn without ``session_key`` is one-shot: its state is dropped when it ends. ``temperature`` 0 is greedy;
    ``top_k`` 0 and ``top_p`` 1 are off. ``session_tokens`` is how many tokens the client believes the session has seen.
    ``timeout`` is in seconds from submission; a turn past it fails and is rolled back.

    ``parent_turn`` is the `TurnOutput.turn_id` of the turn to continue: the session's last one, unless
    ``session_rewind`` says that it is an earlier one and that the session goes back to it. A new session, or a turn
    without a session, that has a ``parent_turn`` forks the conversation there.

    ``recall`` is how many tokens of what has left the window the turn may read again, None for the server's number.

    ``messages`` belong to no session. With a session store they continue the turn that has seen most of them, and their
    own turn is kept too, unless ``session_end`` says not to. ``tenant`` is whose turn it is: another's sessions and
    turns do not exist for it.
    """

    text: str | None = None
    input_ids: tuple[int, ...] | None = None
    messages: str | None = None
    chat: bool = False
    system: str | None = None
    session_key: SessionKey | None = None
    session_start: bool = False
    session_end: bool = False
    session_tokens: int | None = None
    parent_turn: str | None = None
    session_rewind: bool = False
    tenant: str = ""
    recall: int | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    random_seed: int | None = None
    stop_words: tuple[str, ...] = ()
    end_id: int | None = None
    ignore_eos: bool = False
    return_log_probs: bool = False
    timeout: float | None = None
    request_id: str = ""

    def digest(self) -> bytes:
        """A hash (32 bytes) of everything that the answer depends on; equal for a request that is sent again."""
        names = {field.name for field in fields(self)} - {"input_ids", "timeout", "request_id"}
        values = json.dumps({name: getattr(self, name) for name in sorted(names)}, default=str)
        digest = hashlib.sha256(values.encode())
        digest.update(b"" if self.input_ids is None else array("q", self.input_ids).tobytes())
        return digest.digest()

    @property
    def has_input(self) -> bool:
        """Whether there is anything to answer; else the request only ends its session."""
        return self.text is not None or self.input_ids is not None or self.messages is not None

    @property
    def continues(self) -> bool:
        """Whether the turn is part of a conversation that can go on."""
        return self.session_key is not None or self.parent_turn is not None

    @property
    def key(self) -> SessionKey | None:
        """The session's name among those of all tenants."""
        return f"{self.tenant}/{self.session_key}" if self.tenant and self.session_key is not None else self.session_key


@dataclass(frozen=True)
class TurnOutput:
    """The part of a turn's answer that is new since its last output.

    ``finish_reason`` is empty except in the turn's last output: there it is ``stop`` (end of sequence or a stop word),
    ``length`` (``max_tokens``) or ``cancelled``. ``session_tokens`` counts the tokens that the session has been fed;
    the last sampled one is pending. ``turn_id``, in the last output, names the turn where it can be continued; in a
    session the outputs before it have it too. ``byte_counts`` are of consecutive tokens from the answer's first one on:
    how many bytes the text has of each, in UTF-8. A count comes with the last of these bytes, which may be later than
    the token; tokens that a stop word cuts off have none. ``recalled`` are the spans that the turn read again, each as
    three numbers: its turn's in the conversation, from 1 on, its first position, and the one behind its last.
    """

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: str
    num_input_tokens: int
    num_output_tokens: int
    session_tokens: int
    turn_id: str = ""
    byte_counts: tuple[int, ...] = ()
    recalled: tuple[int, ...] = ()


Output = TypeVar("Output", bound=TurnOutput)


def join(outputs: Sequence[Output]) -> Output:
    """Consecutive outputs of a turn as one: all text, tokens and what there is of each, and the last one's numbers."""
    return replace(
        outputs[-1],
        text="".join(output.text for output in outputs),
        token_ids=tuple(token for output in outputs for token in output.token_ids),
        log_probs=tuple(value for output in outputs for value in output.log_probs),
        byte_counts=tuple(count for output in outputs for count in output.byte_counts),
    )
