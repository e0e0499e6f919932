"""Sessions in a store outlive servers that are killed at any moment, and at each failpoint."""

from __future__ import annotations

import pytest

from benchmarks.crash.__main__ import STORES, crash, crash_fleet
from trtstream import failpoint

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.mark.parametrize("store", STORES)
def test_sessions_survive_kills(store: str) -> None:
    run = crash(store, sessions=8, kills=1, hits=1, seed=0)
    assert [fault for kind in run["kinds"] for fault in kind["faults"]] == []
    assert {kind["kind"] for kind in run["kinds"]} == {"random", "none", *failpoint.PLACES}


def test_two_servers_share_sessions_while_one_or_the_other_fails() -> None:
    run = crash_fleet(sessions=6, rounds=1, seed=0)
    assert run["faults"] == []
    assert run["answered"] > 100
