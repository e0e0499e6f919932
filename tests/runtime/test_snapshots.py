"""Snapshots: sessions continue from them exactly, and whatever happens to the files costs time alone."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.mutants import load_mutant
from tests.runtime.clients import Client, ask, wait_until
from trtstream.errors import TrtstreamError
from trtstream.runtime import journal, session_state, snapshots, tiers
from trtstream.runtime.llm import LLM
from trtstream.runtime.scheduler import Scheduler
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.snapshots import Snapshots
from trtstream.runtime.tier_costs import TierCosts

OPTIONS = {"session_key": "s", "max_tokens": 5, "ignore_eos": True}
TEXTS = ("Hello, " * 20, "a", "b", "c")
FROM_SNAPSHOT, FROM_LOG = "continues from a snapshot", "continues from the log"


@pytest.fixture(autouse=True)
def reading_is_cheap(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """So that no test depends on what this machine measures."""
    monkeypatch.setattr(TierCosts, "reading", lambda self, nbytes: 1e-9 * nbytes)
    monkeypatch.setattr(TierCosts, "feeding", lambda self, tokens: float(tokens))
    caplog.set_level(logging.INFO, "trtstream")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "snapshots"


@pytest.fixture
def expected(schedule: Callable[..., Scheduler]) -> list[list[int]]:
    """The answers of an undisturbed session."""
    undisturbed = schedule()
    return [ask(undisturbed, text=text, **OPTIONS).ids for text in TEXTS]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.snapshot"))


def answers(scheduler: Scheduler, *texts: str) -> list[list[int]]:
    return [ask(scheduler, text=text, **OPTIONS).ids for text in texts]


def test_a_server_that_is_closed_leaves_snapshots(start, folder, expected, caplog):
    """The next one feeds no token again: a session that was fed fewer than its sinks has one too."""
    first = start(snapshot_dir=folder)
    assert answers(first, *TEXTS[:2]) == expected[:2]
    ask(first, text="x", session_key="t", max_tokens=1)
    first.close()
    assert len(files(folder)) >= 2
    assert folder.stat().st_mode & 0o777 == 0o700
    second = start(snapshot_dir=folder)
    assert answers(second, *TEXTS[2:]) == expected[2:]
    assert f"{FROM_SNAPSHOT}: 0.0 MB and 0 tokens" in caplog.text
    seen = ask(second, text="y", session_key="t", max_tokens=1).last.session_tokens
    assert seen == 3  # x, the pending token and y
    assert FROM_LOG not in caplog.text


def test_what_was_fed_since_the_snapshot_is_fed_again(start, folder, expected, caplog):
    """A process that dies has the snapshots that it took while it ran."""
    first = start(snapshot_dir=folder)
    assert answers(first, TEXTS[0]) == expected[:1]
    wait_until(lambda: files(folder))
    kept = files(folder)
    assert answers(first, *TEXTS[1:3]) == expected[1:3]
    first.close()
    for path in set(files(folder)) - set(kept):
        path.unlink()
    assert answers(start(snapshot_dir=folder), TEXTS[3]) == expected[3:]
    assert f"{FROM_SNAPSHOT}: 0.0 MB and 12 tokens" in caplog.text


def test_sessions_that_leave_memory_come_back_from_snapshots(start, folder, expected, caplog):
    scheduler = start(snapshot_dir=folder, max_idle_bytes=0, max_sessions=3)
    for number, text in enumerate(TEXTS):
        assert answers(scheduler, text) == [expected[number]]
        for other in range(4):  # more than there are lanes, and than sessions in memory
            ask(scheduler, text="x", session_key=f"{number} {other}", max_tokens=1)
        assert scheduler.stats().sessions == 3
        if number == 0:
            wait_until(lambda: files(folder))
    assert FROM_SNAPSHOT in caplog.text


def damage(path: Path, kind: str) -> None:
    contents = bytearray(path.read_bytes())
    if kind == "flipped":
        contents[len(contents) // 2] ^= 1
    elif kind == "torn":
        del contents[len(contents) // 2 :]
    elif kind == "empty":
        contents.clear()
    path.write_bytes(contents)


@pytest.mark.parametrize("kind", ["flipped", "torn", "empty"])
def test_a_damaged_snapshot_is_named_removed_and_not_used(start, folder, expected, caplog, kind):
    first = start(snapshot_dir=folder)
    assert answers(first, TEXTS[0]) == expected[:1]
    first.close()
    (path,) = files(folder)
    damage(path, kind)
    assert answers(start(snapshot_dir=folder), *TEXTS[1:]) == expected[1:]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith(f"a snapshot is removed and the next tier is used: {path}")
    assert "\n" not in line
    assert FROM_LOG in caplog.text


def swap_turns(start: Callable[..., Scheduler], folder: Path) -> None:
    """Two sessions, each of whose snapshots gets the other's name."""
    first = start(snapshot_dir=folder)
    answers(first, TEXTS[0])
    ask(first, text="Bye, " * 30, **{**OPTIONS, "session_key": "t"})
    first.close()
    one, other = files(folder)
    one.rename(folder / "third")
    other.rename(one)
    (folder / "third").rename(other)


def test_a_snapshot_of_another_turn_is_not_used(start, folder, expected, caplog):
    swap_turns(start, folder)
    assert answers(start(snapshot_dir=folder), *TEXTS[1:]) == expected[1:]
    assert "was saved with turn" in caplog.text
    assert FROM_LOG in caplog.text


def test_a_mutant_that_takes_any_turns_snapshot_is_seen(start, folder, expected, tmp_path, monkeypatch):
    swap_turns(start, folder)
    mutant = load_mutant(session_state, "if saved.get(name) != expected.get(name):", "if False:", tmp_path)
    monkeypatch.setattr(snapshots, "SessionState", mutant.SessionState)
    assert answers(start(snapshot_dir=folder), *TEXTS[1:]) != expected[1:]


def test_a_snapshot_of_another_engine_is_not_used(start, folder, expected, caplog):
    first = start(snapshot_dir=folder)
    answers(first, TEXTS[0])
    first.close()
    (path,) = files(folder)
    turn = bytes.fromhex(path.stem.rpartition("-")[2])
    state = SessionState.load(path, first._journal.snapshots._identity(turn))[0]
    state.save(path, {"engine": "0" * 64, "turn": turn.hex()})
    assert answers(start(snapshot_dir=folder), *TEXTS[1:]) == expected[1:]
    assert "was saved with engine '0000" in caplog.text


def test_a_mutant_that_forgets_the_turns_after_a_snapshot_is_seen(start, folder, expected, tmp_path, monkeypatch):
    first = start(snapshot_dir=folder)
    answers(first, TEXTS[0])
    wait_until(lambda: files(folder))
    kept = files(folder)
    answers(first, *TEXTS[1:3])
    first.close()
    for path in set(files(folder)) - set(kept):
        path.unlink()
    mutant = load_mutant(tiers, "log.fed_ids(turn, position) if behind else []", "[]", tmp_path)
    monkeypatch.setattr(journal, "restore", mutant.restore)
    assert answers(start(snapshot_dir=folder), TEXTS[3]) != expected[3:]


@pytest.mark.parametrize("kind", ["gone", "a file"])
def test_a_folder_that_cannot_be_written_costs_the_snapshot_alone(start, folder, expected, caplog, kind):
    scheduler = start(snapshot_dir=folder)
    folder.rmdir()
    if kind == "a file":
        folder.touch()
    assert answers(scheduler, *TEXTS) == expected
    wait_until(lambda: "a snapshot is left out" in caplog.text)
    scheduler.close()
    for record in caplog.records:
        assert "\n" not in record.getMessage()
        assert record.exc_info is None


def test_a_full_disk_costs_the_snapshot_alone(start, folder, expected, caplog):
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", folder], capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        scheduler = start(snapshot_dir=folder)
        assert answers(scheduler, *TEXTS) == expected
        scheduler.close()
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", folder], check=True)
    assert "No space left on device" in caplog.text
    assert answers(start(snapshot_dir=folder), TEXTS[1]) != []


def test_deleted_sessions_have_no_snapshots(start, folder, log):
    scheduler = start(snapshot_dir=folder)
    answers(scheduler, TEXTS[0])
    ask(scheduler, text=TEXTS[0], **{**OPTIONS, "session_key": "t"})
    wait_until(lambda: len(files(folder)) == 2)
    kept = log.head("t").id.hex()
    ask(scheduler, session_key="s", session_end=True)
    wait_until(lambda: len(files(folder)) == 1)
    assert files(folder)[0].stem.endswith(kept)


def test_a_new_turn_drops_a_copy_that_is_not_complete(engine, start, folder, expected, monkeypatch):
    """Its snapshot would be of neither turn."""
    scheduler = start(snapshot_dir=folder)
    taking = scheduler._sessions.snapshots
    copy_layer = taking.copy_layer
    monkeypatch.setattr(taking, "copy_layer", lambda: None)
    answers(scheduler, TEXTS[0])
    wait_until(lambda: len(taking) == 1)
    copy_layer()
    second = Client(scheduler, text=TEXTS[1], **{**OPTIONS, "max_tokens": 100_000})
    wait_until(lambda: second.outputs)
    assert len(taking) == 0
    monkeypatch.undo()
    second.turn.cancel()
    second.wait()


def test_snapshots_without_a_store_are_refused(engine_folder, folder):
    with pytest.raises(TrtstreamError, match="snapshots need a session store"):
        LLM(engine_folder, snapshot_dir=folder)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrtstreamError, match=r"file/snapshots cannot be made \(Not a directory\)"):
        Snapshots(tmp_path / "file" / "snapshots", 1 << 30, "0" * 64)


# The folder alone.


def write(folder: Path, *numbers: int, max_bytes: int = 1 << 30, engine: str = "0" * 64) -> None:
    states = [(turn(number), SessionState(4, 10, [number] * 10, torch.zeros(2, 2, 1, 512, 4))) for number in numbers]
    Snapshots(folder, max_bytes, engine).close(states, 60.0)


def turn(number: int) -> bytes:
    return bytes([number] * 16)


def opened(folder: Path, engine: str = "0" * 64) -> Snapshots:
    snapshots = Snapshots(folder, 1 << 30, engine)
    snapshots.close((), 60.0)
    return snapshots


def test_the_least_recently_used_leave(folder):
    write(folder, 1, 2, 3)
    for path, number in zip(files(folder), itertools.count(), strict=False):
        os.utime(path, (number, number))
    assert opened(folder).load(turn(1)) is not None
    size = files(folder)[0].stat().st_size
    write(folder, 4, max_bytes=3 * size + 5000)
    assert set(opened(folder).sizes()) == {turn(1), turn(3), turn(4)}
    write(folder, 5, engine="1" * 64, max_bytes=2 * size + 5000)
    assert set(opened(folder, "1" * 64).sizes()) == {turn(5)}
    assert len(files(folder)) == 2  # another engine's leave too


def test_one_that_is_larger_than_all_may_be_is_left_out(folder, caplog):
    write(folder, 1)
    write(folder, 2, max_bytes=1000)
    assert "a snapshot is left out: it takes" in caplog.text
    assert set(opened(folder).sizes()) == {turn(1)}


def test_two_engines_have_snapshots_of_one_turn(folder):
    write(folder, 1)
    write(folder, 1, engine="1" * 64)
    assert len(files(folder)) == 2
    for engine in ("0" * 64, "1" * 64):
        assert opened(folder, engine).load(turn(1)) is not None


def test_what_a_killed_writer_has_left_is_removed(folder):
    write(folder, 1)
    old, new = (folder / f".{files(folder)[0].name}.{name}.part" for name in ("old", "new"))
    other = folder / "letter.txt"
    for path in (old, new, other):
        path.touch()
        os.utime(path, (1, 1))
    os.utime(new)
    opened(folder).sweep(lambda turns: turns)
    assert sorted(folder.iterdir()) == sorted([files(folder)[0], new, other])
    opened(folder).sweep(lambda turns: set())
    assert sorted(folder.iterdir()) == sorted([new, other])


def test_without_the_folder_nothing_is_there(folder):
    snapshots = opened(folder)
    shutil.rmtree(folder)
    assert snapshots.sizes() == {}
    assert snapshots.load(turn(1)) is None
    snapshots.sweep(lambda turns: turns)
