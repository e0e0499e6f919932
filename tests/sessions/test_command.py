"""``trtstream sessions``: what is in a store, without an engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.command_line import run_in_process
from tests.sessions.records import commit_after, turn_after
from trtstream.sessions.records import TurnRecord
from trtstream.sessions.turn_log import TurnLog


@pytest.fixture
def branch(log: TurnLog) -> list[TurnRecord]:
    """The turns of the session "k"; there is a session 77 too."""
    random = Random(0)
    first = turn_after(None, random, system="Be kind.", prompt="Hello", text="Hi there!", created=1e9)
    second = turn_after(first, random, prompt=None, num_input_tokens=3, text="As I said.", created=2e9)
    other = turn_after(None, random, created=1.5e9)
    for key, head, turn in (("k", None, first), ("k", first, second), (77, None, other)):
        assert log.commit([commit_after(key, head, turn)]) == [None]
    return [first, second]


def run(store: str, *arguments: str) -> str:
    done = run_in_process("sessions", *arguments, "--session-store", store)
    assert (done.returncode, done.stderr.startswith("deleted") or done.stderr == "") == (0, True), done.stderr
    return done.stdout


def test_sessions_are_listed(url: str, branch: list[TurnRecord]) -> None:
    listed = [json.loads(line) for line in run(url, "list", "--json").splitlines()]
    assert [values["session"] for values in listed] == ["k", 77]
    assert listed[0] == {
        "session": "k",
        "turn_id": branch[1].id.hex(),
        "session_tokens": branch[1].position,
        "updated": 2e9,
        "expires": None,
    }
    first, second = run(url, "list").splitlines()
    assert first == f"2033-05-18 03:33:20 UTC  {branch[1].position:>11} tokens  {branch[1].id.hex()}  k"
    assert second.endswith("  number:77")


def test_the_texts_of_a_session_are_shown(url: str, branch: list[TurnRecord]) -> None:
    lines = run(url, "show", "k").splitlines()
    assert lines[0].startswith(f"2001-09-09 01:46:40 UTC  {branch[0].id.hex()}  {branch[0].position} tokens, stop")
    assert lines[1:4] == ["system: Be kind.", "> Hello", "Hi there!"]
    assert lines[6:8] == ["> 3 token ids", "As I said."]


def test_an_export_has_everything(url: str, branch: list[TurnRecord]) -> None:
    exported = [json.loads(line) for line in run(url, "export", "k").splitlines()]
    assert [values["tokens"] for values in exported] == [[*turn.tokens] for turn in branch]
    assert exported[1]["parent"] == exported[0]["id"] == branch[0].id.hex()
    assert set(exported[0]) == set(vars(branch[0]))


def test_sessions_are_deleted(url: str, branch: list[TurnRecord], open_log: Callable[..., TurnLog]) -> None:
    run(url, "delete", "k", "number:77")
    assert open_log(url).summaries() == []
    missing = run_in_process("sessions", "delete", "k", "--session-store", url)
    assert missing.returncode == 1
    assert "has no session 'k'; see `trtstream sessions list`" in missing.stderr


def test_a_store_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    done = run_in_process("sessions", "list", "--session-store", str(tmp_path / "none.db"))
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "none.db cannot be opened (No such file or directory)" in done.stderr


def test_it_needs_no_torch(tmp_path: Path, open_log: Callable[..., TurnLog]) -> None:
    open_log(str(tmp_path / "sessions.db"))
    code = """
import sys
from click.testing import CliRunner
from trtstream.cli import cli
result = CliRunner().invoke(cli, ["sessions", "list", "--session-store", sys.argv[1]])
assert result.exit_code == 0, result.output
print([name for name in ("torch", "transformers", "psycopg") if name in sys.modules])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "sessions.db")]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "[]\n"
