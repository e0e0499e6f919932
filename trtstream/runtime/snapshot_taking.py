"""Which sessions get a snapshot, and when: on the scheduler's thread, which only copies."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trtstream.runtime.conversation import Session
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.streaming_engine import StreamingEngine

if TYPE_CHECKING:
    from trtstream.runtime.snapshots import Snapshots

logger = logging.getLogger(__name__)

SHARE = 8  # of the receptive field: a session that was fed this part of it since its last snapshot gets another


class SnapshotTaking:
    """A session gets a snapshot when it leaves host memory, and when it has grown enough since the last. Then its cache
    leaves the engine one layer a step, so that no running answer waits, and its next turn drops the copy.

    None is taken where feeding the tokens again would be faster than reading it, and none without ``snapshots``.
    """

    def __init__(self, engine: StreamingEngine, snapshots: Snapshots | None) -> None:
        self._engine = engine
        self._snapshots = snapshots
        self._copying: OrderedDict[Session, Iterator[SessionState | None]] = OrderedDict()

    def missing(self, session: Session) -> int:
        """How many tokens another snapshot would spare; 0 if it is not worth it."""
        if self._snapshots is None or session.key is None:
            return 0
        tokens = min(session.position - session.snapshot_position, self._engine.receptive_field)
        costs = self._snapshots.costs
        return tokens if costs.feeding(tokens) > costs.reading(self._engine.session_bytes) else 0

    def take(self, session: Session, state: SessionState) -> None:
        """Have a snapshot written of a session, whose ``state`` this is, if that is worth it.

        A session whose turn has been acknowledged may still have the state from before it: of that, none is written.
        """
        if self._snapshots is None or session.turn is None or state.kv_cache is None:
            return
        is_worth = state.position == session.position and self.missing(session)
        if is_worth and self._snapshots.put(session.turn.id, state):
            session.snapshot_position = session.position

    def turn_ended(self, session: Session, lane: int) -> None:
        """Begin a copy of the session in ``lane`` if a snapshot of it is due."""
        if self.missing(session) >= max(self._engine.receptive_field // SHARE, 1):
            self._copying[session] = self._engine.export_by_layer(lane)

    def is_due(self, session: Session) -> bool:
        """Whether the session has a copy that is not complete."""
        return session in self._copying

    def drop(self, session: Session) -> None:
        """Forget the copy of a session, which is going to change or to leave its lane."""
        self._copying.pop(session, None)

    def __len__(self) -> int:
        """How many copies are not complete."""
        return len(self._copying)

    def copy_layer(self) -> None:
        """Copy another layer of the oldest of them, if there is one."""
        for session, copying in [*self._copying.items()][:1]:
            try:
                state = next(copying)
            except Exception:  # no memory for the copy, perhaps
                logger.exception("a snapshot is left out")
                self.drop(session)
                return
            if state is not None:
                self.drop(session)
                self.take(session, state)
