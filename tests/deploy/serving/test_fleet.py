"""Real servers, PostgreSQL and Envoy, of which one after the other fails; and all servers are replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fleet import ACTIONS, run_fleet
from tests.sessions.postgres import NoPostgres, binaries

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _postgres() -> None:
    try:
        binaries()
    except NoPostgres as reason:
        pytest.skip(str(reason))


@pytest.mark.timeout(900)
def test_every_turn_is_there_once_whatever_fails(tmp_path: Path) -> None:
    result = run_fleet(tmp_path, servers=2, sessions=6, actions=[*ACTIONS], seed=1)
    assert result["faults"] == []
    assert all(phase["answered"] for phases in result["phases"].values() for phase in phases), "nothing was tried"
