"""One attention layer with random projections, sessions of it at any position, and the definition's output for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trtstream.plugins.decode_plan import Step, step_rotation
from trtstream.plugins.kv_cache import SCALE_BYTES, stored_vectors, vectors_to_store
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
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """``dtype`` is the projections', and ``kv_dtype`` the cache's (default: the same)."""
        self.layout, self.window, self.first = layout, window, first
        self.ring_first = window.sinks if ring_first is None else ring_first
        oldest = min(max(self.ring_first, first - window.ring), first + new)
        numbers = torch.cat((torch.arange(min(window.sinks, first + new)), torch.arange(oldest, first + new)))
        self.numbers = numbers[(numbers < window.sinks) | (numbers >= oldest)]
        width = (layout.heads + 2 * layout.kv_heads) * layout.head_dim
        generator = torch.Generator().manual_seed(first * 100 + new)
        self.qkv = torch.randn(len(self.numbers), width, generator=generator).to(dtype)
        self.new = self.qkv[-new:]
        self.kv_dtype = kv_dtype or dtype

    def cache(self, end: int) -> torch.Tensor:
        """[2, kv_heads, W, ...] once the tokens before ``end`` are in; vectors that were never written are NaN."""
        window, layout = self.window, self.layout
        width = layout.head_dim + (SCALE_BYTES if self.kv_dtype.itemsize == 1 else 0)
        cache = torch.zeros(2, layout.kv_heads, window.max_sinks + window.ring, width, dtype=self.kv_dtype)
        cached = stored_vectors(cache)
        (cached.numbers if cached.scales is None else cached.scales).fill_(torch.nan)
        _, k, v = layout.split(self.qkv.float())
        stored = vectors_to_store(torch.stack((self._rotated(k), v)), self.kv_dtype)  # [2, T, kv_heads]
        for i, number in enumerate(self.numbers.tolist()):
            if number < end:
                cached[:, :, window.slot(number)] = stored[:, i]
        return cache

    def _rotated(self, k: torch.Tensor, direction: int = 1) -> torch.Tensor:
        """Keys [T, kv_heads, head_dim] rotated to their tokens' positions, or with -1 back again; in k's dtype."""
        if self.layout.alibi:
            return k
        cos, sin = (x.unsqueeze(1) for x in rotation(self.numbers, self.layout.positions.frequencies))
        return rotate(k, cos, direction * sin)

    def expected(self) -> torch.Tensor:
        """The definition's output for the new tokens [new, heads * head_dim], float64.

        Where the cache is quantized, of keys and values as they are after that, which the kernels do in float32.
        """
        window = self.window
        q, k, v = self.layout.split(self.qkv.double())
        if self.kv_dtype.itemsize == 1:
            k, v = self._rotated(k.float()), v.float()
            k, v = (vectors_to_store(x, self.kv_dtype).float().double() for x in (k, v))
            k = self._rotated(k, -1)
        out = streaming_attention(
            q,
            k,
            v,
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
