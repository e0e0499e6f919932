"""The books of one session in an engine: where it is, what its cache can be rebuilt from, how its turn is undone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from trtstream.errors import TrtstreamError
from trtstream.plugins.window import Window
from trtstream.runtime.host_copies import Arrival, host_bytes
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.undo_log import UndoLog


@dataclass
class Lane:
    """The session in one lane: its position, and the ids that its cache can be rebuilt from."""

    window: Window
    position: int  # t of the next token
    ring_first: int  # the ring's first token: S, or later in a session rebuilt from its ids
    sink_ids: list[int]
    recent_ids: deque[int]
    last_logits: torch.Tensor | None = None
    undo: Undo | None = None  # of the turn that runs
    last_undo: Undo | None = None  # of the one that ended last, until anything else is fed

    def append(self, tokens: Sequence[int]) -> None:
        """Count ``tokens`` as fed."""
        self.last_undo = None
        missing = max(self.window.sinks - self.position, 0)
        self.sink_ids.extend(tokens[:missing])
        self.recent_ids.extend(tokens[missing:])
        self.position += len(tokens)

    def rollback(self, cache: torch.Tensor) -> None:
        """Undo everything fed to the session, whose cache is ``cache``, since its turn began."""
        undo, self.undo = self.undo, None
        if undo is None:
            raise TrtstreamError("the session has no turn to roll back")
        self._undo(undo, cache)

    def commit(self) -> None:
        """End the turn, if there is one."""
        self.undo, self.last_undo = None, self.undo

    def before_last_turn(self, cache: torch.Tensor) -> Lane:
        """The session as it was before the turn that ended last, for another lane, whose ``cache`` is a copy."""
        assert self.last_undo is not None, "the session's last turn can be undone"
        lane = self.copy()
        lane._undo(replace(self.last_undo, recent_ids=self.last_undo.recent_ids.copy()), cache)
        return lane

    def _undo(self, undo: Undo, cache: torch.Tensor) -> None:
        undo.log.restore(cache)
        del self.sink_ids[undo.num_sink_ids :]
        self.position, self.recent_ids, self.last_logits = undo.position, undo.recent_ids, undo.last_logits

    def copy(self) -> Lane:
        """The same session for another lane, outside of any turn."""
        return replace(self, sink_ids=[*self.sink_ids], recent_ids=self.recent_ids.copy(), undo=None, last_undo=None)

    def state(self, cache: torch.Tensor, arrival: Arrival) -> SessionState:
        """The session outside the engine, with ``cache`` on the CPU as its cache, complete at its ``arrival``."""
        return SessionState(self.window.sinks, self.position, [*self.sink_ids, *self.recent_ids], cache, arrival)


@dataclass
class Undo:
    """A session as it was when its turn began."""

    position: int
    num_sink_ids: int
    recent_ids: deque[int]
    last_logits: torch.Tensor | None
    log: UndoLog


@dataclass
class ParkedSession:
    """A session that has left its lane in the middle of a turn: its books, and a copy of its cache on the CPU.

    At ``arrival`` that copy is complete, and so is the undo log's.
    """

    session: Lane
    kv_cache: torch.Tensor
    arrival: Arrival

    @property
    def position(self) -> int:
        """How many tokens the session has been fed."""
        return self.session.position

    @property
    def nbytes(self) -> int:
        """Bytes that the copy and the turn's undo log take."""
        copy = host_bytes(self.kv_cache.nbytes, self.kv_cache.is_pinned())
        return copy + (0 if self.session.undo is None else self.session.undo.log.nbytes)

    def commit_turn(self) -> SessionState:
        """The session with its turn."""
        return self.session.state(self.kv_cache, self.arrival)

    def rollback_turn(self) -> SessionState:
        """The session as it was when its turn began. Raises TrtstreamError without a log."""
        self.arrival.wait()
        self.session.rollback(self.kv_cache)
        return self.session.state(self.kv_cache, self.arrival)
