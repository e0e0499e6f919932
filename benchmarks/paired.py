"""Costs beside what they are compared with, in one run, and that beside itself (A/A)."""

from __future__ import annotations

import random
from collections.abc import Callable
from operator import sub, truediv
from statistics import median
from typing import Any


def in_turn(rounds: int, cases: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of each case in each round, whose order is random: a case may slow down the one that comes next."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    order, generator = [*cases], random.Random(0)
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            seconds[name].append(cases[name]())
    return seconds


def row(what: str, seconds: dict[str, list[float]], bound: str) -> dict[str, Any]:
    """The last case next to the first, of which the second is a repetition.

    Differences and ratios are medians of each round's, as a machine that slows down for a while slows all cases of a
    round.
    """
    base, again, other = seconds.values()
    names = [*seconds]
    return {
        "what": what,
        "next to": names[0],
        "ms": median(base) * 1e3,
        "compared": names[2],
        "compared (ms)": median(other) * 1e3,
        "difference (ms)": median(map(sub, other, base)) * 1e3,
        "ratio": median(map(truediv, other, base)),
        "A/A (%)": abs(median(map(truediv, again, base)) - 1) * 100,
        "bound": bound,
    }
