"""The tables, and how an older database becomes a newer one."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.schema import CreateColumn

from trtstream.errors import TrtstreamError

VERSION = 3

metadata = MetaData()

schema_version = Table("trtstream_schema", metadata, Column("version", Integer, nullable=False))

# A turn cannot be deleted under one that continues it, and none can be added to one that is gone: foreign keys see to
# both, whichever server does it.
turns = Table(
    "turns",
    metadata,
    Column("id", LargeBinary(16), primary_key=True),
    Column("parent", LargeBinary(16), ForeignKey("turns.id"), index=True),
    Column("root", LargeBinary(16), nullable=False, index=True),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("sink_token_length", Integer, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("pending", Integer, nullable=False),
    Column("num_input_tokens", Integer, nullable=False),
    Column("num_output_tokens", Integer, nullable=False),
    Column("finish_reason", String(16), nullable=False),
    Column("request_id", Text, nullable=False),
    Column("request_hash", LargeBinary(32), nullable=False),
    Column("created", Float, nullable=False),
    Column("system", Text),
    Column("prompt", Text),
    Column("text", LargeBinary, nullable=False),  # UTF-8: a model may write NUL, which PostgreSQL's text cannot hold
    Column("tokens", LargeBinary, nullable=False),  # int32, little-endian; last, as a walk over turns need not read it
    # From version 2 on. A server of the version before leaves them out.
    Column("tenant", Text, nullable=False, server_default=""),
    Column("transcript", LargeBinary(32), index=True),
    Column("forgotten", Boolean, nullable=False, server_default=false()),
    # From version 3 on.
    Column("recalled", Text),  # JSON
)

# What a gateway keeps: of each response what its turn does not say, and conversations, each of which is a session.
# From version 2 on.
responses = Table(
    "responses",
    metadata,
    Column("turn", LargeBinary(16), primary_key=True),  # which may be committed later
    Column("created", Float, nullable=False),
    Column("body", Text, nullable=False),
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", Text, nullable=False, index=True),
    Column("session", Text, nullable=False),  # its key
    Column("created", Float, nullable=False),
    Column("metadata", Text, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("key", Text, primary_key=True),
    Column("turn", LargeBinary(16), ForeignKey("turns.id"), nullable=False, index=True),
    Column("root", LargeBinary(16), nullable=False, index=True),
    Column("updated", Float, nullable=False),
    Column("expires", Float, index=True),
)


def _add_columns(connection: Connection, *names: str) -> None:
    for name in names:
        column = CreateColumn(turns.c[name]).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {turns.name} ADD COLUMN {column}")


def _add_tenants_and_transcripts(connection: Connection) -> None:
    _add_columns(connection, "tenant", "transcript", "forgotten")
    for index in turns.indexes:
        if turns.c.transcript in index.columns.values():
            index.create(connection)
    metadata.create_all(connection, [responses, conversations])


def _add_recalled(connection: Connection) -> None:
    _add_columns(connection, "recalled")


MIGRATIONS: dict[int, Callable[[Connection], None]] = {1: _add_tenants_and_transcripts, 2: _add_recalled}
"""Those from a version to the next: each only adds, so that servers of the version before can go on."""


def migrate(connection: Connection, url: str) -> None:
    """Make the tables, or add what this version has and the database lacks.

    A database may be one version ahead of us. Raises TrtstreamError for one that is further ahead, or without our
    tables but with others of these names.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7370110)")  # one server at a time
    tables = set(inspect(connection).get_table_names())
    if schema_version.name not in tables:
        taken = sorted(tables & set(metadata.tables))
        if taken:
            raise TrtstreamError(f"{url} has a table {taken[0]!r} that is not trtstream's; give another database")
        metadata.create_all(connection)
        connection.execute(insert(schema_version).values(version=VERSION))
        return
    version = connection.execute(select(schema_version.c.version)).scalar_one()
    if version > VERSION + 1:
        raise TrtstreamError(
            f"{url} has session schema {version}, and this trtstream knows {VERSION}; use a newer trtstream"
        )
    while version < VERSION:
        MIGRATIONS[version](connection)
        version += 1
        connection.execute(update(schema_version).values(version=version))
