"""One attention layer with random projections, sessions of it at any position, and the definition's output for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trtstream.plugins.decode_plan import Step, step_rotation
from trtstream.plugins.positions import PositionEncoding, alibi_slopes, inverse_frequencies, rotate, rotation
from trtstream.plugins.reference import streaming_attention
from trtstream.plugins.window import Window
from trtstream.settings import RopeConfig

FAR = 4_000_000


@dataclass(frozen=True)
class Layout:
    heads: int
    kv_heads: int
    head_dim: int
    alibi: bool = False

    @property
    def positions(self) -> PositionEncoding:
        if self.alibi:
            return PositionEncoding(slopes=alibi_slopes(self.heads) * self.head_dim**-0.5)
        return PositionEncoding(*inverse_frequencies(RopeConfig(), self.head_dim))

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """qkv [T, width] -> q, k, v [T, heads, head_dim]."""
        return qkv.view(len(qkv), -1, self.head_dim).split((self.heads, self.kv_heads, self.kv_heads), dim=1)


LAYOUTS = {
    "mha": Layout(2, 2, 16),
    "gqa": Layout(6, 2, 64),
    "mqa": Layout(20, 1, 16),  # more queries than a tile of float32 takes
    "odd": Layout(2, 1, 80),
    "wide": Layout(2, 1, 128),
    "alibi": Layout(8, 2, 16, alibi=True),
}


class Session:
    """A session that has seen the tokens before ``first``, with a ring that begins with ``ring_first`` (default S).

    Tokens that nothing can see any more do not exist, so ``first`` may be millions.
    """

    def __init__(
        self,
        layout: Layout,
        window: Window,
        first: int,
        new: int = 1,
        ring_first: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.layout, self.window, self.first = layout, window, first
        self.ring_first = window.sinks if ring_first is None else ring_first
        oldest = min(max(self.ring_first, first - window.ring), first + new)
        numbers = torch.cat((torch.arange(min(window.sinks, first + new)), torch.arange(oldest, first + new)))
        self.numbers = numbers[(numbers < window.sinks) | (numbers >= oldest)]
        width = (layout.heads + 2 * layout.kv_heads) * layout.head_dim
        generator = torch.Generator().manual_seed(first * 100 + new)
        self.qkv = torch.randn(len(self.numbers), width, generator=generator).to(dtype)
        self.new = self.qkv[-new:]

    def cache(self, end: int) -> torch.Tensor:
        """[2, kv_heads, W, head_dim] once the tokens before ``end`` are in; NaN where nothing was ever written."""
        window, layout = self.window, self.layout
        cache = torch.full((2, layout.kv_heads, window.max_sinks + window.ring, layout.head_dim), torch.nan)
        _, k, v = layout.split(self.qkv.double())
        if not layout.alibi:
            k = rotate(k, *(x.unsqueeze(1) for x in rotation(self.numbers, layout.positions.frequencies)))
        for number, key, value in zip(self.numbers.tolist(), k, v, strict=True):
            if number < end:
                cache[:, :, window.slot(number)] = torch.stack((key, value)).float()
        return cache.to(self.qkv.dtype)

    def expected(self) -> torch.Tensor:
        """The definition's output for the new tokens [new, heads * head_dim], float64."""
        window = self.window
        out = streaming_attention(
            *self.layout.split(self.qkv.double()),
            window.sinks,
            window.ring,
            self.layout.positions.frequencies,
            t=self.numbers,
        )
        return out.flatten(1)[-len(self.new) :]

    def step(self, lane: int) -> Step:
        return Step(lane, self.window, self.first, self.ring_first)

    def rotation(self) -> torch.Tensor | None:
        if self.layout.alibi:
            return None
        t = torch.arange(self.first, self.first + len(self.new))
        return step_rotation(self.layout.positions, torch.stack((t, t.clamp(max=self.window.capacity - 1)), dim=1))
