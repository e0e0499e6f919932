"""How much a sequence of tokens repeats itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LONGEST_PERIOD = 512  # tokens of what a loop repeats


class Loop(NamedTuple):
    """``tokens`` tokens from ``position`` on of which each is the one ``period`` tokens before it."""

    tokens: int
    period: int
    position: int


def distinct(ids: np.ndarray, n: int) -> float:
    """The share of the runs of n tokens that are different ones; 1 where there is none."""
    if len(ids) < n:
        return 1.0
    runs = np.lib.stride_tricks.sliding_window_view(ids, n)
    return len(np.unique(runs, axis=0)) / len(runs)


def longest_loop(ids: np.ndarray) -> Loop:
    """The longest loop, of a period of at most `LONGEST_PERIOD` tokens; of several, one of the shortest period."""
    best = Loop(0, 0, 0)
    for period in range(1, min(LONGEST_PERIOD, len(ids) - 1) + 1):
        repeats = np.concatenate(([False], ids[period:] == ids[:-period], [False]))
        edges = np.flatnonzero(repeats[1:] != repeats[:-1])
        begins, ends = edges[::2], edges[1::2]
        if len(begins):
            longest = int((ends - begins).argmax())
            best = max(best, Loop(int((ends - begins)[longest]), period, int(begins[longest]) + period), key=_tokens)
    return best


def _tokens(loop: Loop) -> int:
    return loop.tokens
