"""The running mean of losses, in constant memory: bins of equal width on a logarithmic axis of positions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

BINS_PER_OCTAVE = 8


class Curve:
    """Losses by the position of the predicted token, added in order of position. Sums are float64."""

    def __init__(self) -> None:
        self.count = 0
        self._total = 0.0
        self._bins: dict[int, list[float]] = {}  # bin: [first, last, count, sum]

    def add(self, positions: np.ndarray, losses: np.ndarray) -> None:
        """positions [N] (1 for the second token of the text), losses [N] in nats."""
        losses = losses.astype(np.float64)
        bins = np.floor(BINS_PER_OCTAVE * np.log2(positions)).astype(int)
        for number in np.unique(bins):
            inside = bins == number
            first = int(positions[inside][0])
            total = self._bins.setdefault(int(number), [first, first, 0, 0.0])
            total[1] = int(positions[inside][-1])
            total[2] += int(inside.sum())
            total[3] += float(losses[inside].sum())
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
        points, count, total = [], 0, 0.0
        for _, (first, last, inside, subtotal) in sorted(self._bins.items()):
            count, total = count + inside, total + subtotal
            points.append(
                {
                    "first": first,
                    "last": last,
                    "tokens": inside,
                    "loss": subtotal / inside,
                    "perplexity_so_far": math.exp(total / count),
                }
            )
        return points
