"""The log as a gateway uses it: responses, which are turns, and conversations, which are sessions."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from trtstream.sessions.records import SessionKey, TurnRecord, key_text
from trtstream.sessions.schema import conversations, responses, sessions, turns
from trtstream.sessions.turn_log import TurnLog


@dataclass(frozen=True)
class ConversationRecord:
    """A conversation, which is the session ``key``. ``created`` is in seconds since 1970."""

    id: str
    key: SessionKey
    created: float
    metadata: dict[str, str]


class ResponseLog(TurnLog):
    """Every method has the tenant whose turns and conversations there are for it."""

    def add_response(self, turn_id: bytes, body: dict[str, Any]) -> None:
        """Keep what a response says beyond its turn, which may be committed a little later."""
        values = {"turn": turn_id, "created": time.time(), "body": json.dumps(body)}
        try:
            with self._database.writing() as connection:
                connection.execute(insert(responses).values(**values))
        except IntegrityError:
            return  # it is kept already

    def response(self, tenant: str, turn_id: bytes) -> tuple[TurnRecord, dict[str, Any]] | None:
        """A turn, and what `add_response` has kept of it ({} if nothing); None if there is no such turn."""
        turn = self.turn(turn_id)
        if turn is None or turn.tenant != tenant or turn.forgotten:
            return None
        with self._database.reading() as connection:
            body = connection.execute(select(responses.c.body).where(responses.c.turn == turn_id)).scalar()
        return turn, {} if body is None else json.loads(body)

    def forget(self, tenant: str, turn_id: bytes) -> bool:
        """Delete a turn; False if there is none. One that others continue stays for them, and is not found any more.

        A session that ends with it goes back to the turn before it.
        """
        with self._database.writing() as connection:
            ours = turns.c.id == turn_id, turns.c.tenant == tenant, ~turns.c.forgotten
            if connection.execute(update(turns).where(*ours).values(forgotten=True)).rowcount != 1:
                return False
            connection.execute(delete(responses).where(responses.c.turn == turn_id))
            _move_sessions(connection, turn_id)
            _delete_unused(connection, turn_id)
        self._truncate_wal()
        return True

    # Conversations.

    def add_conversation(self, tenant: str, conversation: ConversationRecord) -> None:
        values = {
            "id": conversation.id,
            "tenant": tenant,
            "session": key_text(conversation.key),
            "created": conversation.created,
            "metadata": json.dumps(conversation.metadata),
        }
        with self._database.writing() as connection:
            connection.execute(insert(conversations).values(**values))

    def conversation(self, tenant: str, conversation_id: str) -> ConversationRecord | None:
        query = select(conversations).where(conversations.c.id == conversation_id, conversations.c.tenant == tenant)
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else _conversation(row)

    def conversations(self, tenant: str, limit: int) -> list[ConversationRecord]:
        """The latest ``limit`` of them, the one that was begun last first."""
        query = select(conversations).where(conversations.c.tenant == tenant)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(conversations.c.created.desc()).limit(limit))
            return [_conversation(row) for row in rows]

    def describe_conversation(self, tenant: str, conversation_id: str, metadata: dict[str, str]) -> bool:
        """Put other metadata in place of a conversation's; False if there is none."""
        ours = conversations.c.id == conversation_id, conversations.c.tenant == tenant
        with self._database.writing() as connection:
            done = connection.execute(update(conversations).where(*ours).values(metadata=json.dumps(metadata)))
        return done.rowcount == 1

    def delete_conversation(self, tenant: str, conversation_id: str) -> bool:
        """Delete a conversation and its session's turns but those that forks share; False if there is none."""
        conversation = self.conversation(tenant, conversation_id)
        if conversation is None:
            return False
        self.delete(conversation.key)
        with self._database.writing() as connection:
            connection.execute(delete(conversations).where(conversations.c.id == conversation_id))
        self._truncate_wal()
        return True


def _conversation(row: Any) -> ConversationRecord:
    return ConversationRecord(row.id, json.loads(row.session), row.created, json.loads(row.metadata))


def _move_sessions(connection: Connection, turn_id: bytes) -> None:
    """Sessions that point to the turn go back to the last one before it that is not forgotten, or end."""
    there = sessions.c.turn == turn_id
    before = _parent(connection, turn_id)
    while before is not None:
        if not connection.execute(select(turns.c.forgotten).where(turns.c.id == before)).scalar_one():
            connection.execute(update(sessions).where(there).values(turn=before))
            return
        before = _parent(connection, before)
    connection.execute(delete(sessions).where(there))


def _parent(connection: Connection, turn_id: bytes) -> bytes | None:
    return connection.execute(select(turns.c.parent).where(turns.c.id == turn_id)).scalar()


def _delete_unused(connection: Connection, turn_id: bytes | None) -> None:
    """Delete a forgotten turn that none continues, and those before it of which that is true then."""
    child = turns.alias()
    while turn_id is not None:
        unused = (
            (turns.c.id == turn_id)
            & turns.c.forgotten
            & ~exists().where(child.c.parent == turns.c.id)
            & ~exists().where(sessions.c.turn == turns.c.id)
        )
        parent = _parent(connection, turn_id)
        if connection.execute(delete(turns).where(unused)).rowcount == 0:
            return
        turn_id = parent
