"""A connection to SQLite or PostgreSQL, with the settings on which the log's promises rest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, CursorResult, Insert, Update, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from trtstream.errors import TrtstreamError, one_line
from trtstream.extras import require_extra

DRIVERS = ("sqlite", "postgresql+psycopg")
SECONDS = 5
"""For a connection, a statement, and SQLite's lock."""
CACHE_KIB = 256
"""Of an SQLite connection, for its pages. More fills up as the log grows, and the system has them in memory too."""


def session_store_url(text: str) -> str:
    """``text``, a URL or the path of an SQLite file, as a URL that means the same in every folder.

    Raises TrtstreamError for what is neither SQLite's nor PostgreSQL's.
    """
    if "://" not in text:
        return URL.create("sqlite", database=os.path.abspath(text)).render_as_string()
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise TrtstreamError(f"the session store's URL cannot be read ({one_line(error)})") from None
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in DRIVERS:
        raise TrtstreamError(
            f"the session store is {url.drivername!r}; use sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE"
        )
    if url.drivername == "sqlite":
        if not url.database or url.database == ":memory:":
            raise TrtstreamError("the session store's URL names no file; use sqlite:///PATH")
        url = url.set(database=os.path.abspath(url.database))
    return url.render_as_string(hide_password=False)


class CommitUnknown(Exception):
    """The connection failed while a transaction was being committed: it may have been, or not."""


class Database:
    """Connections for several threads. ``name`` is the URL without its password."""

    def __init__(self, url: str, must_exist: bool = False) -> None:
        self._url = make_url(session_store_url(url))
        self.name = self._url.render_as_string()
        self.is_sqlite = self._url.drivername == "sqlite"
        options: dict[str, Any]
        if self.is_sqlite:
            _open_file(Path(str(self._url.database)), 0 if must_exist else os.O_CREAT)
            # None: SQLite's own commits, where Python would begin transactions by rules of its own.
            options = {"connect_args": {"timeout": SECONDS, "isolation_level": None}}
        else:
            require_extra("psycopg", "postgres", "a session store in PostgreSQL")
            options = {
                "pool_pre_ping": True,
                "connect_args": {
                    "connect_timeout": SECONDS,
                    "options": f"-c statement_timeout={SECONDS}s -c idle_in_transaction_session_timeout={SECONDS}s",
                    "keepalives_idle": SECONDS,
                    "keepalives_interval": 1,
                    "keepalives_count": SECONDS,
                    "tcp_user_timeout": 1000 * SECONDS,
                },
            }
        self._engine = create_engine(self._url, hide_parameters=True, **options)
        self._texts: dict[Insert | Update, tuple[str, list[str] | None]] = {}
        self._idle_writers: list[Connection] = []
        self._is_closed = False
        if self.is_sqlite:
            event.listen(self._engine, "connect", _set_pragmas)
        else:
            event.listen(self._engine, "do_connect", _connect_bounded)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for reading; each statement sees what is committed when it begins."""
        with self._errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, committed when the block ends. Raises CommitUnknown where its end is not known."""
        with self._errors(), self._writer() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection  # leaving with an error rolls back
            try:
                connection.commit()
            except DBAPIError as error:
                raise CommitUnknown(one_line(error.orig or error)) from error

    def write(self, connection: Connection, statement: Insert | Update, values: Mapping[str, Any]) -> CursorResult[Any]:
        """Run one of the statements that every turn has, with all its parameters as the database has them.

        Its text is compiled once: SQLAlchemy takes longer to find it again than SQLite to run it.
        """
        if statement not in self._texts:
            compiled = statement.compile(self._engine)
            self._texts[statement] = str(compiled), getattr(compiled, "positiontup", None)
        text, names = self._texts[statement]
        return connection.exec_driver_sql(
            text, dict(values) if names is None else tuple(values[name] for name in names)
        )

    @contextmanager
    def _writer(self) -> Iterator[Connection]:
        """A connection to write on. SQLite's stay open for the next turn, as its pool takes longer than its statements.

        PostgreSQL's come from the pool, which looks whether the server is still there.
        """
        connection = self._idle_writer() or self._engine.connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if not self.is_sqlite:
            connection.close()
            return
        self._idle_writers.append(connection)
        if self._is_closed:  # by another thread, which may not have seen this one
            self.close()

    def _idle_writer(self) -> Connection | None:
        try:
            return self._idle_writers.pop()
        except IndexError:
            return None

    def close(self) -> None:
        self._is_closed = True
        while connection := self._idle_writer():
            connection.detach()  # from the pool, which would keep it open
            connection.close()
        self._engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What the database or its driver raises, except for a violated constraint, as one line."""
        try:
            yield
        except IntegrityError:
            raise
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:
            cause = one_line(getattr(error, "orig", None) or error)
            message = f"the session store {self.name} does not answer ({cause}); try again later"
            raise TrtstreamError(message, code="unavailable") from error
        except DBAPIError as error:
            cause = one_line(error.orig or error)
            raise TrtstreamError(f"the session store {self.name} failed ({cause})", code="internal") from error


def _open_file(path: Path, flags: int) -> None:
    """Before SQLite does, for its owner alone; the files that SQLite puts next to it get the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | flags, 0o600))
    except OSError as error:
        raise TrtstreamError(f"the session store {path} cannot be opened ({error.strerror})") from None


def _set_pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # a commit is on the disk before its turn is answered
        "foreign_keys=ON",
        "secure_delete=ON",  # what is deleted is overwritten
        f"cache_size=-{CACHE_KIB}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _connect_bounded(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> Any:
    from trtstream.sessions.bounded_connection import connect  # here, as it needs the extra

    return connect(SECONDS, *arguments, **options)
