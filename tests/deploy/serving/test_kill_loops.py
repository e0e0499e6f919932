"""A service under load whose processes are killed comes back, and no client waits for an answer that will not come."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kill_loops import kill_loops

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def test_the_service_survives_kills_under_load(engine: Path) -> None:
    kills = kill_loops(engine, kills=2, clients=3, load_seconds=0.5)
    assert [kill.victim for kill in kills] == ["model", "triton"] * 2
    assert all(kill.noticed_s < kill.answered_s for kill in kills)
