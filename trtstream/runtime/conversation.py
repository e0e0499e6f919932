"""One session, as a turn finds it."""

from __future__ import annotations

from dataclasses import dataclass, field

from trtstream.runtime.requests import SessionKey
from trtstream.runtime.session_state import SessionState
from trtstream.sessions.records import TurnRecord

CacheKey = SessionKey | bytes
"""A session's name. Bytes are for a conversation that has none, because its clients send all that was said."""


@dataclass(eq=False)
class Session:
    """A conversation, as of the last turn that ended: ``turn``, None before that.

    ``state`` is what its cache is made from where this process has not had it before, and ``behind`` the tokens that it
    was fed after that. ``snapshot_position`` is how many it had been fed at its last snapshot.
    """

    key: CacheKey | None
    sink_token_length: int
    turn: TurnRecord | None = None
    state: SessionState | None = None
    behind: list[int] = field(default_factory=list)
    snapshot_position: int = 0

    @property
    def position(self) -> int:
        """Tokens fed."""
        return 0 if self.turn is None else self.turn.position

    def is_after(self, turn: TurnRecord) -> None:
        """Let the session be as it is after ``turn``, which is in this process's memory."""
        self.turn, self.state, self.behind = turn.answer_alone(), None, []
