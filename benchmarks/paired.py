"""Costs beside what they are compared with, in one run, and that beside itself (A/A)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from operator import sub
from typing import Any


def in_turn(rounds: int, cases: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of each case in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            seconds[name].append(case())
    return seconds


def row(what: str, seconds: dict[str, list[float]], bound: str) -> dict[str, Any]:
    """The last case's median next to the first's, of which the second is a repetition."""
    base, again, other = (statistics.median(values) for values in seconds.values())
    names = [*seconds]
    return {
        "what": what,
        "next to": names[0],
        "ms": base * 1e3,
        "compared": names[2],
        "compared (ms)": other * 1e3,
        "difference (ms)": statistics.median(map(sub, seconds[names[2]], seconds[names[0]])) * 1e3,
        "ratio": other / base,
        "A/A (%)": abs(again / base - 1) * 100,
        "bound": bound,
    }
