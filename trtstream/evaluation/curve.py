"""The running mean of losses, in constant memory: bins of equal width on a logarithmic axis of positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS_PER_OCTAVE = 8


@dataclass
class Bin:
    """Tokens at neighbouring positions: the first and last of them, how many, and the sum of their losses."""

    first: int
    last: int
    tokens: int = 0
    total: float = 0.0


class Curve:
    """Losses by the position of the predicted token, added in order of position. Sums are float64."""

    def __init__(self) -> None:
        self.count = 0
        self._total = 0.0
        self._bins: dict[int, Bin] = {}

    def add(self, positions: np.ndarray, losses: np.ndarray) -> None:
        """positions [N] (1 for the second token of the text), losses [N] in nats."""
        losses = losses.astype(np.float64)
        numbers = np.floor(BINS_PER_OCTAVE * np.log2(positions)).astype(int)
        for number in np.unique(numbers):
            inside = numbers == number
            first, last = int(positions[inside][0]), int(positions[inside][-1])
            bin = self._bins.setdefault(int(number), Bin(first, last))
            bin.last = last
            bin.tokens += int(inside.sum())
            bin.total += float(losses[inside].sum())
        self.count += len(losses)
        self._total += float(losses.sum())

    @property
    def mean(self) -> float:
        """Mean loss in nats per token."""
        return self._total / self.count

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean)

    def points(self) -> list[dict[str, Any]]:
        """Each bin's positions, tokens and mean loss, and the perplexity of all tokens up to its end."""
        points = []
        count, total = 0, 0.0
        for _, bin in sorted(self._bins.items()):
            count, total = count + bin.tokens, total + bin.total
            points.append(
                {
                    "first": bin.first,
                    "last": bin.last,
                    "tokens": bin.tokens,
                    "loss": bin.total / bin.tokens,
                    "perplexity_so_far": math.exp(total / count),
                }
            )
        return points
