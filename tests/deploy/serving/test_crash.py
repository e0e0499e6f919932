"""Sessions in a store outlive servers that are killed at any moment, and at each failpoint."""

from __future__ import annotations

import pytest

from benchmarks.crash.__main__ import STORES, crash
from trtstream import failpoint

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.mark.parametrize("store", STORES)
def test_sessions_survive_kills(store: str) -> None:
    run = crash(store, sessions=8, kills=1, hits=1, seed=0)
    assert [fault for kind in run["kinds"] for fault in kind["faults"]] == []
    assert {kind["kind"] for kind in run["kinds"]} == {"random", "none", *failpoint.PLACES}
