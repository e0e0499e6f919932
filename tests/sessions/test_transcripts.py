"""Turns by what their conversations have said, and a database of the version before that knew it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from sqlalchemy import create_engine, inspect, text

from tests.sessions.records import commit_after, turn_after
from trtstream.sessions.schema import MIGRATIONS, VERSION, turns
from trtstream.sessions.turn_log import MAX_VARIABLES, TurnLog

HELLO, MORE, NOBODY = bytes([1]) * 32, bytes([2]) * 32, bytes([9]) * 32
FINGERPRINT = bytes(32)


def test_the_first_transcript_that_a_turn_ends_with(log: TurnLog) -> None:
    random = Random(0)
    first = turn_after(None, random, transcript=HELLO, created=1.0)
    second = turn_after(first, random, transcript=MORE, created=2.0)
    again = turn_after(first, random, transcript=MORE, created=3.0)
    foreign = turn_after(None, random, transcript=MORE, tenant="other", created=4.0)
    unlike = turn_after(None, random, transcript=MORE, fingerprint=bytes([7]) * 32, created=4.0)
    unknown = turn_after(None, random)
    for turn in (first, second, again, foreign, unlike, unknown):
        assert log.commit([commit_after(None, None, turn)]) == [None]
    many = [number.to_bytes(32, "big") for number in range(1000, 1000 + MAX_VARIABLES)]
    for asked, expected in (
        ([NOBODY, MORE, HELLO], [again, second]),
        ([HELLO, MORE], [first]),
        ([*many, MORE], [again, second]),
        ([NOBODY], []),
        ([], []),
    ):
        assert log.furthest("", FINGERPRINT, asked) == expected
    assert log.furthest("other", FINGERPRINT, [MORE, HELLO]) == [foreign]
    assert log.furthest("nobody", FINGERPRINT, [MORE, HELLO]) == []


def test_a_database_of_the_version_before(url: str, open_log: Callable[..., TurnLog]) -> None:
    """Its turns stay, a server of that version goes on, and what it writes is of no tenant."""
    random = Random(1)
    log = open_log(url)
    old, after = turn_after(None, random), turn_after(None, random)
    assert log.commit([commit_after("s", None, old)]) == [None]
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:  # as version 1 made it
        connection.execute(text("DROP INDEX ix_turns_transcript"))
        connection.execute(text("DROP TABLE responses"))
        connection.execute(text("DROP TABLE conversations"))
        for column in ("tenant", "transcript", "forgotten", "recalled"):
            connection.execute(text(f"ALTER TABLE turns DROP COLUMN {column}"))
        connection.execute(text("UPDATE trtstream_schema SET version = 1"))
    newer = open_log(url)
    assert newer.head("s") == old
    indexes = {index["name"] for index in inspect(engine).get_indexes("turns")}
    assert {str(index.name) for index in turns.indexes} <= indexes
    names = [name for name in turns.columns.keys() if name not in ("tenant", "transcript", "forgotten", "recalled")]  # noqa: SIM118
    with engine.begin() as connection:
        version = connection.execute(text("SELECT version FROM trtstream_schema")).scalar_one()
        assert version == VERSION == max(MIGRATIONS) + 1
        values = {name: getattr(after, name) for name in names}
        values.update(text=after.text.encode(), tokens=b"".join(token.to_bytes(4, "little") for token in after.tokens))
        connection.execute(turns.insert().values(**values))
    engine.dispose()
    assert newer.turn(after.id) == after
    assert (after.tenant, after.transcript) == ("", None)
