"""Sessions between turns: which of them stay in the engine, wait in host memory, or expire."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from trtstream.errors import TrtstreamError
from trtstream.machine import physical_memory
from trtstream.runtime.conversation import CacheKey, Session
from trtstream.runtime.lane import ParkedSession
from trtstream.runtime.metrics import Measure, measure_nothing
from trtstream.runtime.scheduler_limits import SchedulerLimits
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.snapshot_taking import SnapshotTaking
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.sessions.records import TurnRecord

if TYPE_CHECKING:
    from trtstream.runtime.journal import Journal


class StateMissing(Exception):
    """A session that was to begin with a copy of another, which has left meanwhile: its state has to be read."""


def default_max_idle_bytes() -> int:
    """A quarter of this machine's memory."""
    return physical_memory() // 4


class SessionStore:
    """All sessions, least recently used first, and the engine's lanes.

    A session stays in its lane after a turn. When a lane is needed, the least recently used idle session moves to host
    memory. Beyond ``max_idle_bytes`` there, the oldest keep their token ids only (their cache is computed again when
    they return), and beyond ``max_sessions`` the oldest expire. With a ``journal`` both are forgotten, as a snapshot or
    the log has them.

    A session leaves its lane in the middle of a turn too, when `park` makes room for another turn. It returns to any
    lane, or its turn ends where it is.

    ``lanes`` has the sessions that are in the engine, ``saved`` the state of those in host memory, ``parked`` those in
    the middle of a turn. A saved session that is brought into a lane is in both until its turn has ended, because the
    turn may have to be undone.

    Not thread-safe: `claim`, `release`, what finds turns, `commit`, `rollback`, `drop` and `expire` need the
    scheduler's lock; the last four, and all others, belong to the scheduler's thread.
    """

    def __init__(
        self,
        engine: StreamingEngine,
        limits: SchedulerLimits,
        journal: Journal | None = None,
        measure: Measure = measure_nothing,
    ) -> None:
        self.lanes: dict[Session, int] = {}
        self.saved: dict[Session, SessionState] = {}
        self.parked: dict[Session, ParkedSession] = {}
        self.snapshots = SnapshotTaking(engine, None if journal is None else journal.snapshots)
        self._measure = measure
        self._has_log = journal is not None
        self._engine = engine
        self._max_idle_bytes = default_max_idle_bytes() if limits.max_idle_bytes is None else limits.max_idle_bytes
        self._max_sessions = limits.max_sessions
        self._sessions: OrderedDict[CacheKey, Session] = OrderedDict()
        self._reserved: set[CacheKey] = set()
        self._running: set[Session] = set()
        self._free_lanes = list(reversed(range(engine.build.max_batch_size)))

    def __len__(self) -> int:
        return len(self._sessions)

    def num_in_host_memory(self) -> int:
        """How many sessions have their caches there."""
        return len(self.parked) + sum(state.kv_cache is not None for state in [*self.saved.values()])

    def claim(self, key: CacheKey | None) -> None:
        """Reserve a session for one turn. Raises TrtstreamError if another turn has it."""
        if key is None:
            return
        if key in self._reserved:
            raise TrtstreamError(f"session {key!r} has a turn running; wait for its end, or cancel it", code="busy")
        self._reserved.add(key)

    def release(self, key: CacheKey | None) -> None:
        """Undo `claim`."""
        if key is not None:
            self._reserved.discard(key)

    def claim_idle(self, turn_ids: Collection[bytes]) -> Session | None:
        """`claim` a session without a name that ends with one of these turns, if none has it."""
        for key, session in self._sessions.items():
            ends_there = session.turn is not None and session.turn.id in turn_ids
            if isinstance(key, bytes) and ends_there and key not in self._reserved:
                self._reserved.add(key)
                return session
        return None

    # What a process without a log remembers of turns: each session's last one.

    def head(self, key: CacheKey | None) -> TurnRecord | None:
        """The last turn of a session."""
        session = None if key is None else self._sessions.get(key)
        return None if session is None else session.turn

    def turn(self, turn_id: bytes) -> TurnRecord | None:
        """The turn of this id, if a session ends with it."""
        return next((s.turn for s in self._sessions.values() if s.turn is not None and s.turn.id == turn_id), None)

    def repeated(self, parent: bytes, request_id: str, request_hash: bytes) -> TurnRecord | None:
        """The turn that continues ``parent`` and came from the same request, if a session ends with it."""
        last = (session.turn for session in self._sessions.values() if session.turn is not None)
        same = (parent, request_id, request_hash)
        return next((turn for turn in last if (turn.parent, turn.request_id, turn.request_hash) == same), None)

    def at(self, key: CacheKey | None, turn: TurnRecord) -> Session:
        """The session of this name if ``turn`` is its last one here; else a new one that continues ``turn``."""
        session = None if key is None else self._sessions.get(key)
        if session is not None and session.turn is not None and session.turn.id == turn.id:
            return session
        return Session(key, turn.sink_token_length, turn.answer_alone())

    def twin(self, turn_id: bytes) -> Session | None:
        """An idle session that ends with this turn, so that another one can begin with a copy of it."""
        for twin in [*self._sessions.values()]:
            if twin.turn is not None and twin.turn.id == turn_id and twin not in self._running:
                return twin
        return None

    def tier(self, session: Session) -> str:
        """Where the cache of a session that is about to begin a turn is: a label of "time_to_first_token_seconds".

        It may leave memory before the session gets a lane.
        """
        if session.turn is None:
            return "new"
        source: Session | None = session
        if session not in self.lanes and session not in self.saved:
            source = self.twin(session.turn.id) or self.successor(session.turn)
        if source in self.lanes:
            return "engine"
        state = None if source is None else self.saved.get(source)
        if state is not None and state.kv_cache is not None:
            return "host"
        return "snapshot" if session.state is not None and session.state.kv_cache is not None else "log"

    def successor(self, turn: TurnRecord) -> Session | None:
        """An idle session in a lane whose last turn continues this one and can be undone in a copy."""
        for session in [*self._sessions.values()]:
            lane = self.lanes.get(session)
            if lane is None or session in self._running or session.turn is None or session.turn.parent != turn.id:
                continue
            if self._engine.position_before_last_turn(lane) == turn.position:
                return session
        return None

    def enter(self, session: Session) -> list[int] | None:
        """Bring a session into a lane. Returns the tokens to feed before its turn's prompt, None if no lane is free.

        Raises StateMissing if the log has to be read first.
        """
        self.snapshots.drop(session)
        if session in self.lanes:
            self._engine.begin_turn(self.lanes[session])
            self._running.add(session)
            return []
        lane = self._take_lane()
        if lane is None:
            return None
        try:
            is_parked = session in self.parked
            first = self._load(session, lane)
            if session.turn is not None and not first and not is_parked:
                self._engine.begin_turn(lane)
        except Exception:
            self._free_lanes.append(lane)
            raise
        self.parked.pop(session, None)
        self.lanes[session] = lane
        self._running.add(session)
        self._drop_caches()
        return first

    def position(self, session: Session) -> int:
        """How many tokens a session in a turn has been fed."""
        if session in self.parked:
            return self.parked[session].position
        return self._engine.position(self.lanes[session])

    def has_room_to_park(self, entering: Session) -> bool:
        """Whether host memory takes one more parked session once ``entering`` has entered a lane."""
        others = sum(parked.nbytes for session, parked in self.parked.items() if session is not entering)
        return others + 2 * self._engine.host_bytes <= self._max_idle_bytes  # a cache, and at most as much to undo

    def park(self, session: Session) -> None:
        """Take a session out of its lane in the middle of a turn."""
        self.parked[session] = self._engine.park(self.lanes[session])
        self._free_lanes.append(self.lanes.pop(session))
        self._drop_caches()

    def acknowledge(self, session: Session, turn: TurnRecord) -> bool:
        """Let the session be continued after ``turn``, which is to be committed before that; needs the lock alone.

        False, with nothing done, for a session that takes another's place: it has to wait until it is committed.
        """
        if session.key is None or self._sessions.get(session.key, session) is not session:
            return False
        self._sessions[session.key] = session
        session.is_after(turn)
        self.release(session.key)
        return True

    def commit(self, session: Session, turn: TurnRecord, ends: bool, acknowledged: bool = False) -> None:
        """Make the turn part of the session; ``ends``: the session is over (a one-shot request's always is)."""
        self._running.remove(session)
        self.saved.pop(session, None)
        if not acknowledged:  # else another turn may have it already
            self.release(session.key)
            session.is_after(turn)
        if session in self.parked:
            self.saved[session] = self.parked.pop(session).commit_turn()
        else:
            self._engine.commit_turn(self.lanes[session])
            self.snapshots.turn_ended(session, self.lanes[session])
        if session.key is None:
            self._forget(session)
            return
        if self._sessions.get(session.key) is not session:  # a new one, perhaps in place of one that was started over
            self.end(session.key)
            self._sessions[session.key] = session
        self._sessions.move_to_end(session.key)
        if ends:
            self.end(session.key)
        self._drop_caches()
        self.expire()

    def rollback(self, session: Session) -> None:
        """Undo the turn: the session is as it was before, and a new one is gone."""
        if session not in self._running:
            return
        self._running.remove(session)
        is_new = session.key is None or self._sessions.get(session.key) is not session
        if is_new or session in self.saved:
            self.parked.pop(session, None)
            self._free_lane(session)
            return
        try:
            if session in self.parked:
                self.saved[session] = self.parked.pop(session).rollback_turn()
                self._drop_caches()
            else:
                self._engine.rollback_turn(self.lanes[session])
        except Exception:
            self.end(session.key)
            raise

    def drop(self, session: Session) -> None:
        """Forget a session in a turn of which nobody knows whether it is part of it."""
        self.release(session.key)
        self._running.discard(session)
        if session.key is not None and self._sessions.get(session.key) is session:
            del self._sessions[session.key]
        self._forget(session)

    def end(self, key: CacheKey | None) -> None:
        """Forget the session of this name, if there is one."""
        session = None if key is None else self._sessions.pop(key, None)
        if session is not None:
            self._forget(session)

    def expire(self) -> None:
        """Forget the oldest of too many sessions, and where there is a log, those that have lost their cache."""
        idle = [s for s in self._sessions.values() if s.key not in self._reserved and s not in self._running]
        excess = max(len(self._sessions) - self._max_sessions, 0)
        for session in idle[:excess]:
            if self.snapshots.missing(session) and (state := self._copy(session)):
                self.snapshots.take(session, state)
            self.end(session.key)
        for session in idle[excess:] if self._has_log else ():
            if session in self.saved and self.saved[session].kv_cache is None:
                self.end(session.key)

    def unsaved(self) -> Iterator[tuple[bytes, SessionState]]:
        """The idle sessions that have no snapshot: their turns and states, the newest first."""
        for session in [*reversed(self._sessions.values())]:
            if session not in self._running and self.snapshots.missing(session):
                state = self._copy(session)
                if session.turn is not None and state is not None:
                    yield session.turn.id, state

    def _copy(self, session: Session) -> SessionState | None:
        """An idle session with its cache, if that is in memory."""
        if session in self.lanes:
            return self._engine.export_state(self.lanes[session])
        state = self.saved.get(session)
        return None if state is None or state.kv_cache is None else state

    def _forget(self, session: Session) -> None:
        self.snapshots.drop(session)
        self.saved.pop(session, None)
        self.parked.pop(session, None)
        self._free_lane(session)

    def _free_lane(self, session: Session) -> None:
        lane = self.lanes.pop(session, None)
        if lane is not None:
            self._free_lanes.append(lane)

    def _take_lane(self) -> int | None:
        if self._free_lanes:
            return self._free_lanes.pop()
        idle = next((s for s in [*self._sessions.values()] if s in self.lanes and s not in self._running), None)
        if idle is None:
            return None
        self.saved[idle] = self._engine.export_state(self.lanes[idle])
        self._measure("evictions_total", label="engine")
        if self.snapshots.is_due(idle):
            self.snapshots.drop(idle)
            self.snapshots.take(idle, self.saved[idle])
        return self.lanes.pop(idle)

    def _load(self, session: Session, lane: int) -> list[int]:
        if session in self.parked:
            self._engine.resume(lane, self.parked[session])
            return []
        state = self.saved.get(session)
        behind: list[int] = []
        if state is None and session.turn is not None:
            if twin := self.twin(session.turn.id):
                session.snapshot_position = twin.snapshot_position
                if twin in self.lanes:
                    self._engine.copy_session(self.lanes[twin], lane)
                    return []
                state = self.saved.get(twin)
            elif successor := self.successor(session.turn):
                if successor.snapshot_position <= session.position:
                    session.snapshot_position = successor.snapshot_position
                self._engine.copy_session_before_last_turn(self.lanes[successor], lane)
                return []
            if session.state is not None and (state is None or state.kv_cache is None):
                state, behind = session.state, session.behind
                session.snapshot_position = 0 if state.kv_cache is None else state.position
            if state is None and self._has_log:
                raise StateMissing
            if state is None:
                raise TrtstreamError(
                    f"turn {session.turn.id.hex()} is not kept any longer: its session has been continued, and this "
                    "server has no session store",
                    code="not_found",
                )
        if state is None:
            self._engine.reset(lane, session.sink_token_length)
            return []
        if state.kv_cache is not None:
            self._engine.import_state(lane, state)
            return behind
        # Only enough to set the session's position; the other tokens are fed as a prompt, between others' tokens.
        ids, first = state.token_ids, min(len(state.token_ids), state.sink_token_length + 1)
        position = state.position - (len(ids) - first)
        self._engine.import_state(lane, SessionState(state.sink_token_length, position, ids[:first]))
        return ids[first:]

    def _drop_caches(self) -> None:
        cached = {
            session: state
            for session in [*self._sessions.values()]
            if (state := self.saved.get(session)) is not None and state.kv_cache is not None
        }
        waiting = sum(parked.nbytes for parked in self.parked.values())
        excess = waiting + len(cached) * self._engine.host_bytes - self._max_idle_bytes
        for session, state in cached.items():
            if excess <= 0:
                break
            excess -= self._engine.host_bytes
            self.snapshots.take(session, state)
            self._measure("evictions_total", label="host")
            self.saved[session] = replace(state, kv_cache=None)
