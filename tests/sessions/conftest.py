"""The two databases, each test with an empty one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from tests.sessions.postgres import NoPostgres, Postgres
from trtstream.sessions.turn_log import TurnLog

NUMBERS = count()
DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.process)]


def running_postgres() -> Iterator[Postgres]:
    """A server that is removed in the end; the test is skipped where none can run."""
    try:
        server = Postgres()
    except NoPostgres as reason:
        pytest.skip(f"no PostgreSQL: {reason}")
    yield server
    server.remove()


postgres = pytest.fixture(scope="session")(running_postgres)


def new_database(server: Postgres) -> str:
    """The URL of an empty database."""
    name = f"test{next(NUMBERS)}"
    engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return make_url(server.url).set(database=name).render_as_string()


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sessions.db"
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def open_log() -> Iterator[Callable[..., TurnLog]]:
    """``open_log(url, ...)``: a log that is closed when the test ends."""
    with ExitStack() as logs:
        yield lambda url, *arguments: logs.enter_context(closing(TurnLog(url, *arguments)))


@pytest.fixture
def log(url: str, open_log: Callable[..., TurnLog]) -> TurnLog:
    return open_log(url)
