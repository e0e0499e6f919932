"""The size of prefill chunks, for devices on which a chunk costs ``fixed + per_token * tokens`` seconds."""

from __future__ import annotations

import random
from statistics import mean

import pytest

from trtstream.runtime.prefill_pacing import PrefillPacing

TARGET = 0.050


def steps(pacing: PrefillPacing, count: int, decode: float, fixed: float, per_token: float, noise: float = 0) -> list:
    """(Seconds between two decode steps, tokens fed in between) of steps that always have a prompt to feed."""
    choose, found = random.Random(0), []
    for _ in range(count):
        size = pacing.budget(decoding=1)
        itl = (decode + fixed + per_token * size) * (1 + noise * choose.random())
        pacing.follow(itl, size)
        found.append((itl, size))
    return found


@pytest.mark.parametrize(
    ("decode", "fixed", "per_token"),
    [(0.022, 0.010, 0.0013), (0.005, 0.001, 0.0002), (0.001, 0.0005, 0.00001), (0.040, 0.020, 0.0013)],
)
def test_chunks_take_the_time_that_is_left(decode, fixed, per_token):
    pacing = PrefillPacing(TARGET * 1e3, 256)
    pacing.follow(decode, 0)
    limit = max(TARGET, 2 * decode)
    settled = steps(pacing, 100, decode, fixed, per_token)[20:]
    assert max(itl for itl, _ in settled) <= limit
    assert mean(itl for itl, _ in settled) >= 0.6 * limit or min(size for _, size in settled) == 255


def test_a_slow_device_feeds_small_chunks_nevertheless():
    pacing = PrefillPacing(TARGET * 1e3, 256)
    pacing.follow(0.01, 0)
    assert {size for _, size in steps(pacing, 50, 0.01, 0.5, 0.1)[10:]} == {4}


def test_it_recovers_from_a_stall():
    pacing = PrefillPacing(TARGET * 1e3, 256)
    pacing.follow(0.01, 0)
    before = max(size for _, size in steps(pacing, 50, 0.01, 0.002, 0.0005)[30:])
    for _ in range(5):
        pacing.follow(3.0, pacing.budget(1))
    assert pacing.budget(1) == 4
    assert max(size for _, size in steps(pacing, 20, 0.01, 0.002, 0.0005)) == before


def test_ends_of_prompts_do_not_make_chunks_larger():
    pacing = PrefillPacing(TARGET * 1e3, 256)
    pacing.follow(0.01, 0)
    size = pacing.budget(1)
    for _ in range(10):
        pacing.follow(0.011, 1)
    assert pacing.budget(1) == size


def test_prompts_alone_take_whole_chunks():
    pacing = PrefillPacing(TARGET * 1e3, 256)
    assert pacing.budget(decoding=0) == 256
    assert PrefillPacing(TARGET * 1e3, 5).budget(decoding=3) == 2
    assert PrefillPacing(TARGET * 1e3, 5).budget(decoding=9) == 1
