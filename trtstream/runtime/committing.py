"""Turns that have ended and wait until the session store has them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnOutput
from trtstream.runtime.turn import Turn
from trtstream.sessions.records import Commit, TurnRecord, unknown_outcome

if TYPE_CHECKING:
    from trtstream.runtime.journal import Journal


@dataclass(frozen=True)
class Ending:
    """A turn's last output, and its record, or None where it only ends its session.

    ``deadline`` is until when the store has to have it, in seconds of `time.monotonic`.
    """

    output: TurnOutput
    record: TurnRecord | None = None
    deadline: float = 0.0


class Committing:
    """The turns that wait, for the scheduler's thread. ``changed`` is notified when one of them need not any longer."""

    def __init__(self, journal: Journal, changed: threading.Condition) -> None:
        self._journal = journal
        self._changed = changed
        self._waiting: dict[Turn, Ending] = {}
        self._outcomes: deque[tuple[Turn, TrtstreamError | None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, turn: Turn, ending: Ending) -> None:
        """Have the turn added to its session in the store, or where it ends its session, have that deleted."""
        head, ends = turn.continuation.head, turn.request.session_end
        commit = Commit(None if ends else ending.record, turn.request.session_key, None if head is None else head.id)
        self._waiting[turn] = replace(ending, deadline=time.monotonic() + self._journal.commit_timeout)
        self._journal.commit(commit, partial(self._done, turn))

    def has_outcomes(self) -> bool:
        return bool(self._outcomes)

    def seconds(self) -> float | None:
        """Until the next turn is late; None if none waits."""
        deadline = min((ending.deadline for ending in self._waiting.values()), default=None)
        return None if deadline is None else max(deadline - time.monotonic(), 0.0)

    def outcomes(self, last: bool = False) -> Iterator[tuple[Turn, Ending, TrtstreamError | None]]:
        """The turns that need not wait any longer, and what kept the store from having them.

        A turn is late after its deadline, and with ``last`` at once: its error has the code ``unknown``.
        """
        while self._outcomes:
            turn, error = self._outcomes.popleft()
            if turn in self._waiting:  # else it was late
                yield turn, self._waiting[turn], error
        now = time.monotonic()
        for turn, ending in [*self._waiting.items()]:
            if last or now > ending.deadline:
                yield turn, ending, unknown_outcome(turn.request.session_key)

    def remove(self, turn: Turn) -> bool:
        """Whether the turn was waiting; it does not any longer."""
        return self._waiting.pop(turn, None) is not None

    def close(self) -> None:
        """Wait for the commits that were asked for, within their timeout, and close the store."""
        self._journal.close()

    def _done(self, turn: Turn, error: TrtstreamError | None) -> None:  # on the journal's thread
        with self._changed:
            self._outcomes.append((turn, error))
            self._changed.notify_all()
