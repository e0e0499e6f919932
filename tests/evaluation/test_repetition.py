"""Loops and different runs of tokens, in sequences that say how many there are."""

from __future__ import annotations

import numpy as np
import pytest

from trtstream.evaluation.repetition import Loop, distinct, longest_loop


def test_distinct_runs() -> None:
    ids = np.array([1, 2, 1, 2, 1, 3])
    assert distinct(ids, 1) == pytest.approx(3 / 6)
    assert distinct(ids, 2) == pytest.approx(3 / 5)  # 12, 21, 13
    assert distinct(ids, 4) == 1
    assert distinct(ids, 7) == 1


def test_the_longest_loop() -> None:
    ids = np.arange(2000)
    assert longest_loop(ids) == Loop(0, 0, 0)
    ids[100:110] = 7
    assert longest_loop(ids) == Loop(tokens=9, period=1, position=101)
    ids[500:900] = np.tile(np.arange(40), 10)
    assert longest_loop(ids) == Loop(tokens=360, period=40, position=540)
    assert longest_loop(ids[:1]) == Loop(0, 0, 0)
