"""What the log of turns does when processes, connections, files and databases fail."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import create_engine

from tests.pages import ROOT
from tests.sessions.conftest import new_database, running_postgres
from tests.sessions.postgres import Postgres
from tests.sessions.proxy import Proxy
from tests.sessions.records import commit_after, turn_after
from trtstream.errors import TrtstreamError
from trtstream.sessions.database import Database, session_store_url
from trtstream.sessions.schema import VERSION
from trtstream.sessions.turn_log import TurnLog


@pytest.mark.process
def test_a_process_that_is_killed_keeps_every_acknowledged_turn(url: str, open_log: Callable[..., TurnLog]) -> None:
    random = Random(0)
    acknowledged: list[bytes] = []
    for _ in range(5):
        loop = [sys.executable, "-m", "tests.sessions.commit_loop", url, "k"]
        with subprocess.Popen(loop, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(random.randrange(1, 20))]
            time.sleep(random.random() / 100)  # to die anywhere in a commit
            process.kill()
            acknowledged += [bytes.fromhex(line) for line in [*lines, *process.stdout] if len(line) == 33]
    log = open_log(url)
    head = log.head("k")
    assert head is not None
    branch = [turn.id for turn in log.branch(head.id)]
    assert len(acknowledged) >= 5
    assert len(set(branch)) == len(branch)
    assert [turn_id for turn_id in branch if turn_id in set(acknowledged)] == acknowledged
    assert len(branch) <= len(acknowledged) + 5  # one in each loop may have been committed and not said so


def test_a_schema_one_version_ahead_is_served_and_a_later_one_refused(
    url: str, open_log: Callable[..., TurnLog]
) -> None:
    open_log(url)
    engine = create_engine(url)
    for version, is_refused in ((VERSION + 1, False), (VERSION + 2, True)):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE trtstream_schema SET version = {version}")
        if is_refused:
            known = f"has session schema {version}, and this trtstream knows {VERSION}; use a newer"
            with pytest.raises(TrtstreamError, match=known):
                open_log(url)
        else:
            open_log(url)
    engine.dispose()


def test_other_peoples_tables_are_left_alone(url: str, open_log: Callable[..., TurnLog]) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE sessions (id INTEGER)")
    engine.dispose()
    with pytest.raises(TrtstreamError, match="has a table 'sessions' that is not trtstream's; give another database"):
        open_log(url)


def test_a_deleted_text_is_in_no_file(tmp_path: Path, open_log: Callable[..., TurnLog]) -> None:
    log = open_log(f"sqlite:///{tmp_path}/sessions.db")
    head = None
    for _ in range(5):
        turn = turn_after(head, Random(0), text="correct horse battery staple " * 400)
        log.commit([commit_after("k", head, turn)])
        head = turn
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["sessions.db", "sessions.db-shm", "sessions.db-wal"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert any(b"battery staple" in file.read_bytes() for file in files)
    assert log.delete("k")
    assert not any(b"battery staple" in file.read_bytes() for file in files)


def test_the_settings_of_sqlite(tmp_path: Path, open_log: Callable[..., TurnLog]) -> None:
    log = open_log(str(tmp_path / "a folder" / ".." / "sessions.db"))
    with log._database.reading() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mysql://host/db", "the session store is 'mysql'; use sqlite:///PATH or postgresql"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("postgresql://host:port/db", "cannot be read"),
    ],
)
def test_urls_of_other_stores_are_refused(text: str, message: str) -> None:
    with pytest.raises(TrtstreamError, match=message):
        session_store_url(text)


def test_a_url_means_the_same_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert session_store_url("a b.db") == session_store_url("sqlite:///a b.db") == f"sqlite:///{tmp_path}/a b.db"
    assert session_store_url("postgresql://me:secret@host/db") == "postgresql+psycopg://me:secret@host/db"


def test_a_file_that_cannot_be_opened_or_is_something_else(tmp_path: Path) -> None:
    with pytest.raises(TrtstreamError, match=r"missing/sessions\.db cannot be opened \(No such file"):
        TurnLog(str(tmp_path / "missing" / "sessions.db"))
    (tmp_path / "letter.txt").write_text("Dear Sir, " * 1000)
    with pytest.raises(TrtstreamError, match="file is not a database") as refusal:
        TurnLog(str(tmp_path / "letter.txt"))
    assert "\n" not in str(refusal.value)


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(TrtstreamError, match="does not answer") as refusal:
        TurnLog("postgresql+psycopg://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_full_disk_keeps_what_was_committed(tmp_path: Path, open_log: Callable[..., TurnLog]) -> None:
    log = open_log(str(tmp_path / "sessions.db"))
    first = turn_after(None, Random(0))
    assert log.commit([commit_after("k", None, first)]) == [None]
    # SQLite's own limit has the same effect as the disk's.
    with log._database.writing() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    (error,) = log.commit([commit_after("k", first, turn_after(first, Random(0), text="x" * 100_000))], 0.1)
    assert error is not None
    assert "is full" in str(error)
    assert log.head("k") == first


def test_a_write_that_outlives_the_store_leaves_no_file_open(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "sessions.db"))
    began, may_end = threading.Event(), threading.Event()

    def write() -> None:
        with database.writing():
            began.set()
            may_end.wait()

    writer = threading.Thread(target=write)
    writer.start()
    began.wait()
    database.close()
    may_end.set()
    writer.join()
    files = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert not [path for path in files if path.startswith(str(tmp_path.resolve()))]


own_postgres = pytest.fixture(running_postgres)


@pytest.mark.process
def test_a_database_that_is_gone_and_comes_back(own_postgres: Postgres, open_log: Callable[..., TurnLog]) -> None:
    log = open_log(own_postgres.url)
    first = turn_after(None, Random(0))
    second = turn_after(first, Random(1))
    assert log.commit([commit_after("k", None, first)]) == [None]
    own_postgres.stop()
    with pytest.raises(TrtstreamError, match="does not answer") as refusal:
        log.head("k")
    assert refusal.value.code == "unavailable"
    (error,) = log.commit([commit_after("k", first, second)], 0.2)
    assert error is not None
    assert error.code == "unavailable"
    back = threading.Timer(0.5, own_postgres.start)
    back.start()
    assert log.commit([commit_after("k", first, second)], 30) == [None]
    back.join()
    assert log.head("k") == second


@pytest.mark.process
@pytest.mark.parametrize("forwards", [False, True])
def test_a_connection_that_is_cut_in_a_commit(
    own_postgres: Postgres, open_log: Callable[..., TurnLog], forwards: bool
) -> None:
    url = new_database(own_postgres)
    with closing(Proxy(own_postgres.folder)) as proxy:
        log = open_log(proxy.url(url))
        first = turn_after(None, Random(0))
        proxy.cuts, proxy.forwards = 1, forwards
        assert log.commit([commit_after("k", None, first)], 10) == [None]  # the second attempt finds out
        assert proxy.cuts == 0
        assert log.head("k") == first
        second = turn_after(first, Random(1))
        proxy.cuts = 1000
        (error,) = log.commit([commit_after("k", first, second)], 0.5)
        # Where the turn was committed all the same, the next attempt finds it.
        assert (error is None) if forwards else (error is not None and error.code == "unknown")
        proxy.cuts = 0
        assert log.head("k") == (second if forwards else first)


@pytest.mark.process
def test_two_processes_share_a_file(tmp_path: Path, open_log: Callable[..., TurnLog]) -> None:
    """SQLite's lock makes them take turns."""
    path = str(tmp_path / "sessions.db")
    open_log(path)
    loops = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.sessions.commit_loop", path, key],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ},
        )
        for key in ("a", "b")
    ]
    for loop in loops:
        assert loop.stdout is not None
        assert all(len(loop.stdout.readline()) == 33 for _ in range(20))
    for loop in loops:
        loop.kill()
        loop.communicate()
    assert {summary.key for summary in open_log(path).summaries()} == {"a", "b"}


@pytest.mark.process
def test_a_database_that_does_not_answer_and_does_not_end(
    own_postgres: Postgres, open_log: Callable[..., TurnLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtstream.sessions.database.SECONDS", 2)
    with closing(Proxy(own_postgres.folder)) as proxy:
        log = open_log(proxy.url(new_database(own_postgres)))
        first = turn_after(None, Random(0))
        assert log.commit([commit_after("k", None, first)]) == [None]
        proxy.swallows = True
        with pytest.raises(TrtstreamError, match="does not answer") as refusal:
            log.head("k")
        assert refusal.value.code == "unavailable"
        (error,) = log.commit([commit_after("k", first, turn_after(first, Random(1)))], 0.1)
        assert error is not None
        assert error.code == "unavailable"
        proxy.swallows = False
        assert log.head("k") == first
