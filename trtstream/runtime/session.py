"""Sessions at rest and in slots: who stays in the engine, who waits in host memory, who is forgotten."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from trtstream.errors import TrtstreamError
from trtstream.machine import physical_memory
from trtstream.runtime.requests import SessionKey, TurnRequest
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.streaming_engine import StreamingEngine


@dataclass(eq=False)
class Session:
    """A conversation. It is in ``slot``, or saved in ``state``, or both while a turn runs that may yet be undone."""

    key: SessionKey | None
    sink_token_length: int
    position: int = 0  # tokens fed, as of the last turn that ended
    pending: int | None = None  # the last sampled token: the next turn feeds it first
    slot: int | None = None
    state: SessionState | None = None
    running: bool = False


def default_max_idle_bytes() -> int:
    """A quarter of this machine's memory."""
    return physical_memory() // 4


class SessionStore:
    """All sessions, least recently used first, and the engine's slots.

    A session stays in its slot after a turn. When a slot is needed, the least recently used idle session moves to host
    memory; beyond ``max_idle_bytes`` there the oldest keep their token ids only (their cache is computed again when
    they come back), and beyond ``max_sessions`` the oldest expire.

    Not thread-safe: `reserve`, `release`, `commit` and `rollback` need the scheduler's lock; all but the first two
    belong to the scheduler's thread.
    """

    def __init__(self, engine: StreamingEngine, max_idle_bytes: int, max_sessions: int) -> None:
        self._engine = engine
        self._max_idle_bytes = max_idle_bytes
        self._max_sessions = max_sessions
        self._sessions: OrderedDict[SessionKey, Session] = OrderedDict()
        self._reserved: set[SessionKey] = set()
        self._free_slots = list(reversed(range(engine.build.max_batch_size)))

    def __len__(self) -> int:
        return len(self._sessions)

    def reserve(self, request: TurnRequest) -> Session | None:
        """Claim the request's session for one turn. None if the turn starts a new one.

        Raises TrtstreamError if another turn has it, or if it is not what ``session_tokens`` says.
        """
        key = request.session_key
        if key is None:
            return None
        if key in self._reserved:
            raise TrtstreamError(f"session {key!r} has a turn running; wait for its end, or cancel it", code="busy")
        session = None if request.session_start else self._sessions.get(key)
        found = 0 if session is None else session.position
        if request.session_tokens not in (None, found):
            if session is None:
                raise TrtstreamError(
                    f"session {key!r} does not exist (it ended, expired or was lost) and session_tokens is "
                    f"{request.session_tokens}; start a new session",
                    code="not_found",
                )
            raise TrtstreamError(
                f"session {key!r} has seen {found} tokens and session_tokens is {request.session_tokens}; "
                "send what its last response said",
                code="conflict",
            )
        self._reserved.add(key)
        return session

    def release(self, key: SessionKey | None) -> None:
        """Let go of what `reserve` claimed."""
        self._reserved.discard(key)

    def enter(self, session: Session) -> list[int] | None:
        """Bring a session into a slot. Returns the tokens to feed before its turn's own, or None if no slot is free."""
        if session.slot is not None:
            self._engine.begin_turn(session.slot)
            session.running = True
            return []
        slot = self._take_slot()
        if slot is None:
            return None
        try:
            first = self._load(session, slot)
        except Exception:
            self._free_slots.append(slot)
            raise
        session.slot, session.running = slot, True
        self._drop_caches()
        return first

    def commit(self, session: Session, pending: int, ends: bool) -> None:
        """The turn is part of the session now; ``ends``: the session is over (a one-shot request's always is)."""
        session.running, session.state, session.pending = False, None, pending
        session.position = self._engine.position(session.slot)
        self._engine.commit_turn(session.slot)
        self.release(session.key)
        if session.key is None:
            self._free_slot(session)
            return
        if self._sessions.get(session.key) is not session:  # new, or in the place of one that was started over
            self.end(session.key)
            self._sessions[session.key] = session
        self._sessions.move_to_end(session.key)
        if ends:
            self.end(session.key)
        self._expire()

    def rollback(self, session: Session) -> None:
        """The turn never was: the session is as it was before, and a new one is gone."""
        self.release(session.key)
        if not session.running:
            return
        session.running = False
        if session.state is not None or self._sessions.get(session.key) is not session:
            self._free_slot(session)
            return
        try:
            self._engine.rollback_turn(session.slot)
        except Exception:
            self.end(session.key)
            raise

    def end(self, key: SessionKey) -> None:
        """Forget a session, if there is one."""
        session = self._sessions.pop(key, None)
        if session is not None:
            self._free_slot(session)

    def _free_slot(self, session: Session) -> None:
        if session.slot is not None:
            self._free_slots.append(session.slot)
            session.slot = None

    def _take_slot(self) -> int | None:
        if self._free_slots:
            return self._free_slots.pop()
        idle = next((s for s in self._sessions.values() if s.slot is not None and not s.running), None)
        if idle is None:
            return None
        idle.state = self._engine.export_state(idle.slot)
        slot, idle.slot = idle.slot, None
        return slot

    def _load(self, session: Session, slot: int) -> list[int]:
        state = session.state
        if state is None:
            self._engine.reset(slot, session.sink_token_length)
            return []
        if state.kv_cache is not None:
            self._engine.import_state(slot, state)
            return []
        # Only as many as say where the session stands; the others are fed as a prompt is, in between others' tokens.
        ids, first = state.token_ids, min(len(state.token_ids), state.sink_token_length + 1)
        position = state.position - (len(ids) - first)
        self._engine.import_state(slot, SessionState(state.sink_token_length, position, ids[:first]))
        return ids[first:]

    def _drop_caches(self) -> None:
        saved = [s for s in self._sessions.values() if s.state is not None and s.state.kv_cache is not None]
        excess = sum(s.state.kv_cache.nbytes for s in saved) - self._max_idle_bytes
        for session in saved:
            if excess <= 0:
                break
            excess -= session.state.kv_cache.nbytes
            session.state = replace(session.state, kv_cache=None)

    def _expire(self) -> None:
        excess = len(self._sessions) - self._max_sessions
        if excess > 0:
            for key in [key for key in self._sessions if key not in self._reserved][:excess]:
                self.end(key)
