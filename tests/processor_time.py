"""Fails tests that need more processor time than they say, so that the fast ones stay fast on any machine."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

LIMIT = 30.0
"""Seconds, of a test without the mark "slow": twice what the longest takes, as some processors are slower."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Of this process and of those that it has waited for; shared servers, which still run, cost no test anything."""
    before = _seconds()
    yield
    seconds = _seconds() - before
    if seconds > LIMIT and item.get_closest_marker("slow") is None:
        pytest.fail(f"took {seconds:.1f} seconds of processor time: make it lighter, or mark it with pytest.mark.slow")


def _seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
