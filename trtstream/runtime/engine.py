"""The Engine protocol: what a target's runtime gives to the scheduler, and the state of one session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from trtstream.settings import BuildConfig, ModelConfig


@dataclass
class SessionState:
    """All that a session is, outside an engine.

    ``token_ids`` are the session's sinks followed by its last ``L * (R - 1) + 1`` tokens (fewer when it is young):
    enough to rebuild the cache on any engine of the same checkpoint and window, because the receptive field grows by
    R - 1 tokens a layer. ``kv_cache`` (on the CPU) is the shortcut for the engine that exported it, or None.
    """

    sink_token_length: int
    position: int
    token_ids: list[int]
    kv_cache: torch.Tensor | None = None


class Engine(Protocol):
    """A loaded engine. A slot is one session's place in the batch, ``0 <= slot < build.max_batch_size``.

    Not thread-safe: one thread (the scheduler's) calls it. Logits are float32 tensors on the engine's device that stay
    valid after later calls; what computes there may still be under way. Token ids outside ``[0, vocab_size)`` raise
    TrtstreamError before anything is changed.
    """

    model: ModelConfig
    build: BuildConfig

    def reset(self, slot: int, sink_token_length: int | None = None) -> None:
        """Start a new session in ``slot``, with S sinks (default ``build.sink_token_length``)."""

    def position(self, slot: int) -> int:
        """How many tokens the session in ``slot`` has been fed."""

    def visible_tokens(self, slot: int) -> list[int]:
        """Ids of the tokens that the session sees: its sinks, then its last R others, oldest first."""

    def prefill(self, slot: int, tokens: Sequence[int]) -> torch.Tensor:
        """Feed one or more tokens (chunked inside to ``max_num_tokens``); logits [vocab] after the last."""

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Feed one token to each of several distinct slots in one step; logits [len(slots), vocab]."""

    def score(self, slot: int, tokens: Sequence[int]) -> torch.Tensor:
        """Feed tokens; log-probability [T] of each given those before it (nan for a session's first token)."""

    def export_state(self, slot: int) -> SessionState:
        """A copy of the session, ``kv_cache`` included."""

    def import_state(self, slot: int, state: SessionState) -> None:
        """Put a session into ``slot``; a state without ``kv_cache`` is rebuilt from its ids."""

    def begin_turn(self, slot: int) -> None:
        """From here on keep what is overwritten, so that `rollback_turn` can bring this moment back."""

    def commit_turn(self, slot: int) -> None:
        """Forget the log that `begin_turn` started (a no-op without one)."""

    def rollback_turn(self, slot: int) -> None:
        """Undo everything fed since `begin_turn`."""
