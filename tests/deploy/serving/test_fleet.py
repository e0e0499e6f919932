"""Real servers, PostgreSQL, a proxy and a gateway, of which one after the other fails; and all servers are replaced."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.fleet.parts import ACTIONS
from benchmarks.fleet.run import run_fleet
from tests.sessions.postgres import NoPostgres, binaries

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _postgres() -> None:
    try:
        binaries()
    except NoPostgres as reason:
        pytest.skip(str(reason))


HAPROXY = pytest.param(
    "haproxy",
    ["kill", "stop"],
    marks=pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed"),
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("proxy", "actions"), [("envoy", [*ACTIONS]), HAPROXY])
def test_every_turn_is_there_once_whatever_fails(tmp_path: Path, proxy: str, actions: list[str]) -> None:
    result = run_fleet(tmp_path, servers=2, sessions=6, actions=actions, seed=1, proxy=proxy)
    assert result["faults"] == []
    assert {row["tier"] for row in result["first_tokens"]} >= {"engine", "log"}
