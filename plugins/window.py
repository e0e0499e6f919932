"""Which cache slots hold which tokens: the arithmetic that every runtime shares, on the host, in integers."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Window:
    """The cache of one session: S sinks in slots [0, S_max), and M ring slots from S_max on, for R recent tokens.

    Token i lives in slot i if i < S, else in ``S_max + (i - S) mod M``. Nothing is ever moved. M is R plus ``spare``
    slots, whose tokens no query sees any longer: room for a chunk that is written before it attends.
    """

    sinks: int
    max_sinks: int
    ring: int
    spare: int = 0

    @property
    def ring_slots(self) -> int:
        """M."""
        return self.ring + self.spare

    @property
    def capacity(self) -> int:
        """C, the most tokens that a query sees."""
        return self.sinks + self.ring

    def cache_position(self, t: int) -> int:
        """p(t), the position inside the cache of token t's query."""
        return min(t, self.capacity - 1)

    def slot(self, t: int) -> int:
        """The slot of token t."""
        return t if t < self.sinks else self.max_sinks + (t - self.sinks) % self.ring_slots

    def slots(self, tokens: torch.Tensor) -> torch.Tensor:
        """The slots of tokens (int64), as `slot`."""
        return torch.where(tokens < self.sinks, tokens, self.max_sinks + (tokens - self.sinks) % self.ring_slots)

    def kept(self, first: int, end: int) -> torch.Tensor:
        """Those of the tokens [first, end) that the cache still holds after ``end - 1``: sinks and the last M."""
        tokens = torch.arange(first, end)
        return tokens[(tokens < self.sinks) | (tokens >= end - self.ring_slots)]
