"""Which session to continue for a turn: in place where that is possible, so that no cache is copied."""

from __future__ import annotations

import secrets
from collections import OrderedDict

MAX_SESSIONS = 4096  # as many as a model keeps


class Sessions:
    """The sessions that this process has begun, by their last turns.

    It may forget any of them: a turn that is not here is continued in a new session, which is a fork of it.
    """

    def __init__(self) -> None:
        self._by_turn: OrderedDict[tuple[str, str], str] = OrderedDict()

    def take(self, tenant: str, turn_id: str | None) -> str:
        """The tenant's session that ends with this turn, or a new one. The next to ask gets another."""
        session = None if turn_id is None else self._by_turn.pop((tenant, turn_id), None)
        return session or secrets.token_hex(16)

    def put(self, tenant: str, turn_id: str, session: str) -> None:
        """The session ends with this turn now."""
        self._by_turn[tenant, turn_id] = session
        while len(self._by_turn) > MAX_SESSIONS:
            self._by_turn.popitem(last=False)
