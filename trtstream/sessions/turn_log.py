"""The log of all turns: a tree of rows that never change, and sessions that each point to one of them."""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from sqlalchemy import CTE, Connection, Row, Select, bindparam, delete, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from trtstream import failpoint
from trtstream.errors import TrtstreamError
from trtstream.sessions.database import CommitUnknown, Database
from trtstream.sessions.records import (
    TOKEN_TYPE,
    Commit,
    Recalled,
    SessionKey,
    SessionSummary,
    TurnRecord,
    key_text,
    token_array,
    unknown_outcome,
)
from trtstream.sessions.schema import conversations, migrate, responses, sessions, turns

MAX_PAUSE = 0.5  # seconds between two attempts
CHECKPOINT_ATTEMPTS = 20
MAX_IDS = 500  # in one statement
KEEP_SECONDS = 24 * 3600.0
MAX_VARIABLES = 256  # in one query
MAX_EQUAL = 16  # turns with one transcript, of which some process may have one at hand

# What every turn runs is built once: building a statement takes longer than SQLite does to run it.
HEAD = select(turns).join(sessions, sessions.c.turn == turns.c.id).where(sessions.c.key == bindparam("name"))
TURN = select(turns).where(turns.c.id == bindparam("turn_id"))
REPEATED = (
    select(turns)
    .where(
        turns.c.parent == bindparam("parent"),
        turns.c.request_id == bindparam("request_id"),
        turns.c.request_hash == bindparam("request_hash"),
    )
    .order_by(turns.c.created)
    .limit(1)
)
ADD_TURN = insert(turns)
ADD_SESSION = insert(sessions)
MOVE_SESSION = (
    update(sessions)
    .where(sessions.c.key == bindparam("name"), sessions.c.turn == bindparam("expected"))
    .values({name: bindparam(name) for name in ("turn", "root", "updated", "expires")})
)


class TurnLog:
    """Sessions in a database, for several threads and servers at once. Opening it makes its tables.

    A session that was not continued for ``session_ttl`` seconds (None: never) is deleted by a `sweep`. With
    ``must_exist``, an SQLite file that does not exist is refused rather than made. All methods
    raise TrtstreamError with the code ``unavailable`` while the database does not answer.
    """

    def __init__(self, url: str, session_ttl: float | None = None, must_exist: bool = False) -> None:
        self._database = Database(url, must_exist)
        self._session_ttl = session_ttl
        try:
            with self._database.writing() as connection:
                migrate(connection, self._database.name)
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """The database's URL, without its password."""
        return self._database.name

    def close(self) -> None:
        self._database.close()

    # Reading.

    def head(self, key: SessionKey) -> TurnRecord | None:
        """The turn that a session points to; None if there is no such session."""
        return self._one(HEAD, name=key_text(key))

    def turn(self, turn_id: bytes) -> TurnRecord | None:
        """The turn of this id, if there is one."""
        return self._one(TURN, turn_id=turn_id)

    def repeated(self, parent: bytes, request_id: str, request_hash: bytes) -> TurnRecord | None:
        """The turn that continues ``parent`` and came from the same request, if there is one."""
        return self._one(REPEATED, parent=parent, request_id=request_id, request_hash=request_hash)

    def furthest(self, tenant: str, fingerprint: bytes, transcripts: Sequence[bytes]) -> list[TurnRecord]:
        """The tenant's turns that end with the first of these ``transcripts`` that any ends with, the latest first."""
        turns_of_tenant = (turns.c.tenant == tenant) & (turns.c.fingerprint == fingerprint) & ~turns.c.forgotten
        for start in range(0, len(transcripts), MAX_VARIABLES):
            some = transcripts[start : start + MAX_VARIABLES]
            known = select(turns.c.transcript).distinct().where(turns.c.transcript.in_(some), turns_of_tenant)
            with self._database.reading() as connection:
                found = {bytes(transcript) for transcript in connection.execute(known).scalars()}
                furthest = next((transcript for transcript in some if transcript in found), None)
                if furthest is None:
                    continue
                query = select(turns).where(turns.c.transcript == furthest, turns_of_tenant)
                rows = connection.execute(query.order_by(turns.c.created.desc()).limit(MAX_EQUAL))
                return [_record(row) for row in rows]
        return []

    def recent_ids(self, turn: TurnRecord, count: int) -> list[int]:
        """The ids of the session's sinks and of the last ``count`` other tokens that it was fed, up to ``turn``."""
        sinks = turn.sink_token_length
        return self._ids(turn, max(turn.position - count, sinks), sinks)

    def fed_ids(self, turn: TurnRecord, first: int) -> list[int]:
        """The ids of the tokens from position ``first`` on that the session was fed, up to ``turn``."""
        return self._ids(turn, first, 0)

    def _ids(self, turn: TurnRecord, first: int, sinks: int) -> list[int]:
        """The ids of a session's ``sinks`` first tokens, and of those from position ``first`` (>= sinks) on."""
        branch = _branch(turn.id)
        query = (
            select(turns.c.start, turns.c.tokens)
            .join(branch, branch.c.id == turns.c.id)
            .where((turns.c.position > first) | (turns.c.start < sinks))
            .order_by(turns.c.start)
        )
        ids: list[int] = []
        with self._database.reading() as connection:
            for start, tokens in connection.execute(query):
                fed = np.frombuffer(tokens, TOKEN_TYPE)
                ids += [*fed[: max(sinks - start, 0)].tolist(), *fed[max(first - start, 0) :].tolist()]
        return ids

    def nearest(self, turn_id: bytes, among: Collection[bytes]) -> tuple[bytes, int] | None:
        """The last of the turns ``among`` that is before the turn, or it, and its position; None if there is none."""
        branch = _branch(turn_id)
        query = select(turns.c.id, turns.c.position).join(branch, branch.c.id == turns.c.id)
        with self._database.reading() as connection:
            found = [(bytes(name), position) for name, position in connection.execute(query)]
        return max((turn for turn in found if turn[0] in among), key=lambda turn: turn[1], default=None)

    def existing(self, turn_ids: Iterable[bytes]) -> set[bytes]:
        """Those of the turns that are in the log, which is not asked about none."""
        ids = [*turn_ids]
        found: set[bytes] = set()
        for first in range(0, len(ids), MAX_IDS):
            query = select(turns.c.id).where(turns.c.id.in_(ids[first : first + MAX_IDS]))
            with self._database.reading() as connection:
                found |= {bytes(name) for name in connection.execute(query).scalars()}
        return found

    def branch(self, turn_id: bytes) -> list[TurnRecord]:
        """The turns from a conversation's first to this one."""
        branch = _branch(turn_id)
        query = select(turns).join(branch, branch.c.id == turns.c.id).order_by(turns.c.position, turns.c.start)
        with self._database.reading() as connection:
            return [_record(row) for row in connection.execute(query)]

    def branch_ids(self, turn_id: bytes) -> list[bytes]:
        """The ids of the turns from a conversation's first to this one."""
        branch = _branch(turn_id)
        query = select(turns.c.id).join(branch, branch.c.id == turns.c.id).order_by(turns.c.position, turns.c.start)
        with self._database.reading() as connection:
            return [bytes(name) for name in connection.execute(query).scalars()]

    def turns(self, turn_ids: Sequence[bytes]) -> list[TurnRecord]:
        """At most 500 turns of one branch by their ids, in its order; those that were deleted are left out."""
        query = select(turns).where(turns.c.id.in_(turn_ids)).order_by(turns.c.position, turns.c.start)
        with self._database.reading() as connection:
            return [_record(row) for row in connection.execute(query)]

    def summaries(self) -> list[SessionSummary]:
        """All sessions, the one that was continued last first."""
        query = (
            select(sessions, turns.c.position)
            .join(turns, sessions.c.turn == turns.c.id)
            .order_by(sessions.c.updated.desc(), sessions.c.key)
        )
        with self._database.reading() as connection:
            return [
                SessionSummary(json.loads(row.key), bytes(row.turn), row.position, row.updated, row.expires)
                for row in connection.execute(query)
            ]

    def _one(self, query: Select[Any], **values: Any) -> TurnRecord | None:
        with self._database.reading() as connection:
            row = connection.execute(query, values).first()
        return None if row is None else _record(row)

    # Writing.

    def commit(self, commits: Sequence[Commit], timeout: float = 10.0) -> list[TrtstreamError | None]:
        """Make each of the commits, of different sessions, or say why not. They are on the disk when this returns.

        All go into one transaction. If one of them fails, each gets its own, and is tried again while the database
        does not answer, for ``timeout`` seconds. Codes of the errors: ``conflict`` (the session points elsewhere),
        ``not_found`` (the turn's parent was deleted), ``unavailable`` (it was not committed) and ``unknown`` (the
        connection was lost in a COMMIT: read the session again).
        """
        deadline = time.monotonic() + timeout
        try:
            with self._database.writing() as connection:
                for commit in sorted(commits, key=lambda commit: key_text(commit.key or "")):  # against deadlocks
                    self._apply(connection, commit)
                failpoint.reach("in-commit")
        except (CommitUnknown, IntegrityError, TrtstreamError):
            return [self._commit_alone(commit, deadline) for commit in commits]
        self._after_deletions(commits)
        return [None] * len(commits)

    def delete(self, key: SessionKey) -> bool:
        """Delete a session and all its turns but those that another session shares; False if there is none."""
        while True:
            head = self.head(key)
            if head is None:
                return False
            error = self._commit_alone(Commit(None, key, head.id), time.monotonic())
            if error is None:
                return True
            if error.code != "conflict":
                raise error

    def sweep(self, now: float | None = None, keep: float = KEEP_SECONDS) -> None:
        """Delete sessions that have expired at ``now`` (seconds since 1970), and turns that nothing keeps.

        A turn that no session leads to (it was taken back, or belongs to no session) stays for ``keep`` seconds.
        """
        now = time.time() if now is None else now
        with self._database.writing() as connection:
            expired = sessions.c.expires <= now
            roots = set(connection.execute(select(sessions.c.root).where(expired)).scalars())
            connection.execute(delete(sessions).where(expired))
            for table, kept in (
                (conversations, sessions.c.key == conversations.c.session),
                (responses, turns.c.id == responses.c.turn),
            ):
                connection.execute(delete(table).where(table.c.created <= now - keep, ~exists().where(kept)))
        child = turns.alias()
        unkept = (
            select(turns.c.root)
            .distinct()
            .where(turns.c.created <= now - keep)
            .where(~exists().where(child.c.parent == turns.c.id), ~exists().where(sessions.c.turn == turns.c.id))
        )
        with self._database.reading() as connection:
            unkept_roots = set(connection.execute(unkept).scalars())
        for root in roots | unkept_roots:
            try:
                with self._database.writing() as connection:
                    _collect(connection, root, None if root in roots else now - keep)
            except IntegrityError:
                continue  # it was continued just now; the next sweep looks again
        if roots:
            self._truncate_wal()

    def _apply(self, connection: Connection, commit: Commit) -> None:
        turn, key = commit.turn, commit.key
        if turn is not None:
            self._database.write(connection, ADD_TURN, _values(turn))
        if key is None:
            return
        name = key_text(key)
        if turn is None:
            root = connection.execute(select(sessions.c.root).where(sessions.c.key == name)).scalar()
            if root is None:
                return
            done = connection.execute(
                delete(sessions).where(sessions.c.key == name, sessions.c.turn == commit.expected)
            )
            if done.rowcount == 1:
                _collect(connection, root, None)
                return
        else:
            expires = None if self._session_ttl is None else turn.created + self._session_ttl
            values = {"turn": turn.id, "root": turn.root, "updated": turn.created, "expires": expires}
            if commit.expected is None:
                self._database.write(connection, ADD_SESSION, {"key": name, **values})
                return
            moved = {"name": name, "expected": commit.expected, **values}
            done = self._database.write(connection, MOVE_SESSION, moved)
        if done.rowcount != 1:
            raise _conflict(key)

    def _commit_alone(self, commit: Commit, deadline: float) -> TrtstreamError | None:
        may_be_there = False
        pause = 0.01
        while True:
            try:
                with self._database.writing() as connection:
                    self._apply(connection, commit)
            except IntegrityError:
                # The turn's id is random: if it is there, an attempt whose end was not known has made the commit.
                try:
                    if commit.turn is None:
                        failure = _conflict(commit.key)  # continued just now
                    elif self.turn(commit.turn.id) is not None:
                        return None
                    elif commit.turn.parent is not None and self.turn(commit.turn.parent) is None:
                        return TrtstreamError("the turn that was continued has been deleted", code="not_found")
                    else:
                        return _conflict(commit.key)
                except TrtstreamError as error:
                    failure = error
            except CommitUnknown as error:
                may_be_there = True
                failure = TrtstreamError(f"the session store {self.name} does not answer ({error})")
            except TrtstreamError as error:
                if error.code != "unavailable":
                    return error
                failure = error
            else:
                self._after_deletions([commit])
                return None
            if time.monotonic() >= deadline:
                if may_be_there:
                    return unknown_outcome(commit.key)
                return failure
            time.sleep(min(pause, max(deadline - time.monotonic(), 0)))
            pause = min(2 * pause, MAX_PAUSE)

    def _after_deletions(self, commits: Sequence[Commit]) -> None:
        if any(commit.turn is None for commit in commits):
            self._truncate_wal()

    def _truncate_wal(self) -> None:
        """Overwrite what was deleted in SQLite's write-ahead log too."""
        if self._database.is_sqlite:
            with self._database.reading() as connection:
                for _ in range(CHECKPOINT_ATTEMPTS):
                    busy, _, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
                    if not busy:
                        return
                    time.sleep(0.05)


def _conflict(key: SessionKey | None) -> TrtstreamError:
    return TrtstreamError(
        f"session {key!r} was continued elsewhere during this turn, which is undone; send it again to continue there",
        code="conflict",
    )


def _branch(turn_id: bytes) -> CTE:
    """The ids of a turn and of those before it."""
    branch = select(turns.c.id, turns.c.parent).where(turns.c.id == turn_id).cte("branch", recursive=True)
    return branch.union_all(select(turns.c.id, turns.c.parent).join(branch, turns.c.id == branch.c.parent))


def _collect(connection: Connection, root: bytes, young: float | None) -> None:
    """Delete the turns of a tree to which no session leads, and no turn that was made after ``young``."""
    kept = select(turns.c.id, turns.c.parent).join(sessions, sessions.c.turn == turns.c.id)
    kept = kept.where(sessions.c.root == root)
    if young is not None:
        made_later = select(turns.c.id, turns.c.parent).where(turns.c.root == root, turns.c.created > young)
        kept = kept.union(made_later)  # type: ignore[assignment]
    tree = kept.cte("kept", recursive=True)
    tree = tree.union(select(turns.c.id, turns.c.parent).join(tree, turns.c.id == tree.c.parent))
    left = turns.c.root == root, turns.c.id.not_in(select(tree.c.id))
    connection.execute(delete(responses).where(responses.c.turn.in_(select(turns.c.id).where(*left))))
    connection.execute(delete(turns).where(*left))


def _values(turn: TurnRecord) -> dict[str, Any]:
    values = {name: getattr(turn, name) for name in turns.columns.keys()}  # noqa: SIM118 (columns, not their names)
    recalled = turn.recalled and turn.recalled.to_json()
    tokens = np.asarray(turn.tokens, TOKEN_TYPE).tobytes()
    return {**values, "text": turn.text.encode(), "tokens": tokens, "recalled": recalled}


def _record(row: Row[Any]) -> TurnRecord:
    values: dict[str, Any] = {**row._mapping, "text": row.text.decode(), "tokens": _from_bytes(row.tokens)}
    del values["position"]
    values["recalled"] = row.recalled and Recalled.from_json(row.recalled)
    return TurnRecord(**values)


def _from_bytes(tokens: bytes) -> array[int]:
    ids = token_array()
    ids.frombytes(np.frombuffer(tokens, TOKEN_TYPE).astype(np.intc).tobytes())
    return ids
