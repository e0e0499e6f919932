"""Turns from their submission until they are queued: accepted or refused, and read."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from trtstream.errors import TrtstreamError
from trtstream.runtime.continuation import same_answer
from trtstream.runtime.metrics import Measure, code_of
from trtstream.runtime.scheduler_limits import SchedulerLimits
from trtstream.runtime.session import SessionStore
from trtstream.runtime.turn import Turn
from trtstream.runtime.turn_reader import TurnReader


class Intake:
    """``changed`` guards the ``queue``, the ``sessions`` and all of this."""

    def __init__(
        self,
        limits: SchedulerLimits,
        reader: TurnReader,
        sessions: SessionStore,
        queue: deque[Turn],
        changed: threading.Condition,
        measure: Measure,
    ) -> None:
        self._limits = limits
        self._reader = reader
        self._sessions = sessions
        self._queue = queue
        self._changed = changed
        self._measure = measure
        self._reading: set[Turn] = set()  # accepted, but not tokenized yet
        self._refusal = ""  # why new turns are refused
        self._closed = False

    def __len__(self) -> int:
        """How many turns are accepted and not queued yet."""
        return len(self._reading)

    def take(self, turn: Turn) -> None:
        """Queue a turn, at once or where reading it takes long, later: then its error is an output.

        Raises TrtstreamError for one that cannot be run.
        """
        with self._changed:
            self._check_open()
            self._sessions.claim(turn.key)
            self._reading.add(turn)
        if not self._reader.run_elsewhere(turn.request, partial(self._read_elsewhere, turn, self._reader.read)):
            self._read(turn, self._reader.read)

    def read_again(self, turn: Turn) -> None:
        """Take a turn out of the queue until its session's state is read."""
        with self._changed:
            self._queue.remove(turn)
            self._reading.add(turn)
        self._reader.run_in_store(partial(self._read_elsewhere, turn, self._reader.restore))

    def refuse(self, reason: str) -> None:
        """Take no new turns."""
        self._refusal = self._refusal or reason

    def close(self, reason: str) -> None:
        """Refuse those that are being read too."""
        self._refusal = reason
        self._closed = True
        self._reader.close()

    def _check_open(self) -> None:
        if self._refusal:
            raise TrtstreamError(self._refusal, code="draining")
        waiting = len(self._reading) + len(self._queue)
        if waiting >= self._limits.max_queue_size:
            raise TrtstreamError(f"the server is busy: {waiting} turns are waiting; try again later", code="busy")

    def _read(self, turn: Turn, read: Callable[[Turn], None]) -> None:
        """``read`` the turn and queue it. Raises TrtstreamError for a turn that this engine cannot take."""
        try:
            if not self._closed:
                read(turn)
                if answered := turn.continuation.answered:
                    with self._changed:
                        self._sessions.release(turn.key)
                    self._measure("turns_total", label="replayed")
                    turn.emit(same_answer(answered))
                    return
            with self._changed:
                if self._closed:
                    raise TrtstreamError(self._refusal, code="draining")
                self._queue.append(turn)
        except BaseException:
            with self._changed:
                self._sessions.release(turn.key)
            raise
        finally:
            with self._changed:
                self._reading.remove(turn)
                self._changed.notify_all()

    def _read_elsewhere(self, turn: Turn, read: Callable[[Turn], None]) -> None:
        try:
            self._read(turn, read)
        except Exception as error:
            self._measure("refusals_total", label=code_of(error))
            turn.emit(error)
