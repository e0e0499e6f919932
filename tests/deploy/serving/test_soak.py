"""Clients that leave, fork, go back and send nonsense, many more than there are lanes: all answers are right."""

from __future__ import annotations

import pytest

from benchmarks.soak import soak

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def test_a_short_soak() -> None:
    run = soak(tokens=15_000, sessions=16, seed=0)
    assert run["faults"] == []
    assert all(run["did"][act] > 0 for act in ("insult", "vanish", "fork", "rewind"))
