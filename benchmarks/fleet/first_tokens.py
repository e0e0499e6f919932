"""Times to the first token of all servers of a fleet, by where the session's cache was, as the servers measure them."""

from __future__ import annotations

import re
import threading
import urllib.request
from collections import Counter
from contextlib import suppress
from typing import Any

from benchmarks.fleet.parts import Node
from trtstream.runtime.metrics import METRICS, PREFIX

METRIC = "time_to_first_token_seconds"
PERCENTS = (50, 95, 99)
ASK_SECONDS = 1.0  # a server publishes as often; one that is killed takes its last second with it

Counts = dict[tuple[str, str | float], float]
"""By tier, and the bucket's upper bound in seconds, or "sum" or "count"."""


class FirstTokens:
    """Asks every server, until it is `closed`."""

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._by_life: dict[str, Counts] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._ask()

    def rows(self) -> list[dict[str, Any]]:
        """For each tier the turns, their mean, and percentiles as upper bounds, in ms."""
        total = sum(map(Counter, self._by_life.values()), Counter())
        rows = []
        for tier in METRICS[METRIC].values:
            if turns := total[tier, "count"]:
                row = {"tier": tier, "turns": int(turns), "mean_ms": round(1e3 * total[tier, "sum"] / turns, 2)}
                for percent in PERCENTS:
                    row[f"p{percent}_ms_at_most"] = _percentile(total, tier, percent / 100 * turns)
                rows.append(row)
        return rows

    def _run(self) -> None:
        while not self._over.wait(ASK_SECONDS):
            self._ask()

    def _ask(self) -> None:
        for node in self._nodes:
            if life := node.life:
                with suppress(OSError):
                    self._by_life[life] = read(f"127.0.0.1:{node.ports[2]}") or self._by_life.get(life, {})


def read(url: str) -> Counts:
    """What the server whose metrics are at ``url`` says. Raises OSError."""
    with urllib.request.urlopen(f"http://{url}/metrics", timeout=ASK_SECONDS) as answer:
        lines = re.findall(rf"^{PREFIX}{METRIC}_(\w+){{(.*)}} (\S+)$", answer.read().decode(), re.MULTILINE)
    counts: Counts = {}
    for series, labels, value in lines:
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        counts[pairs["tier"], float(pairs["le"]) if "le" in pairs else series] = float(value)
    return counts


def _percentile(total: Counter[tuple[str, str | float]], tier: str, rank: float) -> float | None:
    """The least bound below which ``rank`` of the tier's turns are, in ms; None if there is none."""
    return next((bound * 1e3 for bound in METRICS[METRIC].buckets if total[tier, bound] >= rank), None)
