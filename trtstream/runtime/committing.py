"""Turns that have ended and wait until the session store has them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from trtstream import failpoint
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnOutput
from trtstream.runtime.session import SessionStore
from trtstream.runtime.turn import Turn
from trtstream.sessions.records import Commit, TurnRecord, unknown_outcome

if TYPE_CHECKING:
    from trtstream.runtime.journal import Journal


@dataclass(frozen=True)
class Ending:
    """A turn's last output, and its record, or None where it only ends its session.

    ``deadline`` is until when the store has to have it, in seconds of `time.monotonic`. It ``is_settled`` once it is
    known whether the store has it, or that this comes too late, and ``is_told`` if another thread tells the client.
    """

    output: TurnOutput
    record: TurnRecord | None = None
    deadline: float = 0.0
    is_settled: bool = False
    is_told: bool = False


class Committing:
    """The turns that wait, for the scheduler's thread. ``changed`` guards ``sessions`` and all of this.

    As a step takes longer than a commit, the client gets the last output from the journal's thread, and may send the
    session's next turn at once. The scheduler has to ask for `outcomes` before it runs that.
    """

    def __init__(self, journal: Journal, sessions: SessionStore, changed: threading.Condition) -> None:
        self._journal = journal
        self._sessions = sessions
        self._changed = changed
        self._waiting: dict[Turn, Ending] = {}
        self._outcomes: deque[tuple[Turn, TrtstreamError | None]] = deque()
        self._telling = 0

    def __len__(self) -> int:
        return len(self._waiting) + self._telling

    def add(self, turn: Turn, ending: Ending) -> None:
        """Have the turn added to its session in the store, or where it ends its session, have that deleted."""
        head, ends = turn.continuation.head, turn.request.session_end
        commit = Commit(None if ends else ending.record, turn.request.key, None if head is None else head.id)
        self._waiting[turn] = replace(ending, deadline=time.monotonic() + self._journal.commit_timeout)
        self._journal.commit(commit, partial(self._done, turn))

    def has_outcomes(self) -> bool:
        return bool(self._outcomes)

    def seconds(self) -> float | None:
        """Until the next turn is late; None if none waits."""
        deadline = min((ending.deadline for ending in self._waiting.values()), default=None)
        return None if deadline is None else max(deadline - time.monotonic(), 0.0)

    def outcomes(self, last: bool = False) -> Iterator[tuple[Turn, Ending, TrtstreamError | None]]:
        """The turns that need not wait any longer, and what kept the store from having them; `remove` each.

        A turn is late after its deadline, and with ``last`` at once: its error has the code ``unknown``.
        """
        while outcome := self._next_outcome(last):
            yield outcome

    def remove(self, turn: Turn) -> bool:
        """Whether the turn was waiting; it does not any longer."""
        return self._waiting.pop(turn, None) is not None

    def _next_outcome(self, last: bool) -> tuple[Turn, Ending, TrtstreamError | None] | None:
        with self._changed:
            if self._outcomes:
                turn, error = self._outcomes.popleft()
                return turn, self._waiting[turn], error
            now = time.monotonic()
            for turn, ending in self._waiting.items():
                if not ending.is_settled and (last or now > ending.deadline):
                    self._waiting[turn] = replace(ending, is_settled=True)
                    return turn, ending, unknown_outcome(turn.request.session_key)
        return None

    def close(self) -> None:
        """Wait for the commits that were asked for, within their timeout, and close the store."""
        self._journal.close()

    def _done(self, turn: Turn, error: TrtstreamError | None) -> None:  # on the journal's thread
        with self._changed:
            ending = self._waiting.get(turn)
            if ending is None or ending.is_settled:
                return  # it was late
            record = None if error is not None or turn.request.session_end else ending.record
            is_told = record is not None and self._sessions.acknowledge(turn.session, record)
            self._waiting[turn] = replace(ending, is_settled=True, is_told=is_told)
            self._outcomes.append((turn, error))  # before the session's next turn can come
            self._telling += is_told
            if not is_told:
                self._changed.notify_all()
                return
        failpoint.reach("before-response")
        turn.emit(ending.output)
        with self._changed:
            self._telling -= 1
            self._changed.notify_all()  # only now: the scheduler's thread would compete with the client's answer
