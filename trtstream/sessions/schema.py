"""The tables, and how an older database becomes a newer one."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
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
    insert,
    inspect,
    select,
    update,
)

from trtstream.errors import TrtstreamError

VERSION = 1

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

# Those from a version to the next: each only adds, so that servers of the version before can go on.
MIGRATIONS: dict[int, Callable[[Connection], None]] = {}


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
