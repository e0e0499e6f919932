"""Position encodings: rotary frequencies, rotations in float64, and ALiBi slopes.

A conversation's positions reach millions, where float32 cannot hold an angle (at t = 4,000,000 it is off by 0.2 rad),
so angles are float64 until their cosine is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from trtstream.errors import TrtstreamError
from trtstream.settings import ModelConfig, RopeConfig

Rotation = tuple[torch.Tensor, torch.Tensor]


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[torch.Tensor, float]:
    """Rotary frequencies [head_dim / 2] in radians per token (float64), and the factor that scales cos and sin.

    Where a part of each head rotates, the frequencies of the other pairs are zeros, and those pairs come last.
    Scalings are transformers' (``modeling_rope_utils``): ``linear`` (position interpolation), ``llama3`` (Llama 3.1),
    ``yarn`` (arXiv:2309.00071), ``longrope`` (arXiv:2402.13753). Of ``dynamic`` and ``longrope`` these are the ones
    within the original context, which the build enforces: ``dynamic`` is ``default`` there.
    """
    rotary_dim = rope.rotary_dim or head_dim
    frequencies, scale = _rotating(rope, rotary_dim)
    return F.pad(frequencies, (0, (head_dim - rotary_dim) // 2)), scale


def _rotating(rope: RopeConfig, dim: int) -> tuple[torch.Tensor, float]:
    """The same of the dimensions that rotate."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    frequencies = rope.theta**-exponents
    if rope.kind == "linear":
        return frequencies / _required(rope, "factor"), 1.0
    if rope.kind == "llama3":
        return _llama3(frequencies, rope), 1.0
    if rope.kind == "yarn":
        return _yarn(frequencies, rope, dim)
    if rope.kind == "longrope":
        return frequencies / torch.tensor(rope.short_factors, dtype=torch.float64), _required(rope, "attention_factor")
    return frequencies, 1.0


def _required(rope: RopeConfig, field: str) -> float:
    """A number that scalings of this kind need. Raises TrtstreamError if it is None."""
    value = getattr(rope, field)
    if value is None:
        raise TrtstreamError(f"the model's config has rope scaling {rope.kind!r} without {field}; add it")
    return value


def _llama3(frequencies: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    low, high = _required(rope, "low_freq_factor"), _required(rope, "high_freq_factor")
    turns = _required(rope, "original_max_position_embeddings") * frequencies / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (smooth + (1 - smooth) / _required(rope, "factor"))


def _yarn(frequencies: torch.Tensor, rope: RopeConfig, dim: int) -> tuple[torch.Tensor, float]:
    factor, context = _required(rope, "factor"), _required(rope, "original_max_position_embeddings")

    def dimension_that_turns(times: float) -> float:
        return dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    # 0 counts as unset, as in transformers.
    low = dimension_that_turns(rope.beta_fast or 32)
    high = dimension_that_turns(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return frequencies * (1 - ramp + ramp / factor), _yarn_attention_factor(rope, factor)


def _yarn_attention_factor(rope: RopeConfig, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def rotation(positions: torch.Tensor, frequencies: torch.Tensor, scale: float = 1.0) -> Rotation:
    """cos and sin (float64) [..., head_dim / 2] of integer positions [...], both multiplied by ``scale``.

    A frequency of zero is a pair that does not rotate: its cos is 1 and its sin 0, whatever the scale.
    """
    angles = positions.to(torch.float64).unsqueeze(-1) * frequencies
    cos, sin = angles.cos(), angles.sin()
    if scale == 1.0:
        return cos, sin
    scales = torch.full_like(frequencies, scale).masked_fill(frequencies == 0, 1.0)
    return cos * scales, sin * scales


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of x [..., head_dim] by angles [..., head_dim / 2]; in x's dtype."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """ALiBi's slope of each head [num_heads], float32 (Press et al., arXiv:2108.12409).

    The bias of a key is ``-slope * distance / sqrt(head_dim)`` in Falcon, which scales the sum of score and bias.
    """
    power_of_two = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * i / power_of_two) for i in range(1, power_of_two + 1)]
    slopes += [2 ** (-4 * i / power_of_two) for i in range(1, 2 * (num_heads - power_of_two) + 1, 2)]
    return torch.tensor(slopes, dtype=torch.float32)


@dataclass(frozen=True)
class PositionEncoding:
    """A model's position encoding: rotary ``frequencies`` [head_dim / 2] and ``scale``, or ALiBi ``slopes`` [heads].

    ``slopes`` (float32) are the loss of a scaled score per token of distance: Falcon's are divided by sqrt(head_dim).
    """

    frequencies: torch.Tensor | None = None
    scale: float = 1.0
    slopes: torch.Tensor | None = None

    @classmethod
    def of(cls, model: ModelConfig) -> PositionEncoding:
        if model.alibi_slopes is not None:
            return cls(slopes=torch.tensor(model.alibi_slopes))
        if model.rope is None:
            return cls(slopes=alibi_slopes(model.num_attention_heads) * model.head_dim**-0.5)
        return cls(*inverse_frequencies(model.rope, model.head_dim))

    def to(self, device: torch.device) -> PositionEncoding:
        """The same, computed on ``device``."""
        frequencies, slopes = (None if x is None else x.to(device) for x in (self.frequencies, self.slopes))
        return PositionEncoding(frequencies, self.scale, slopes)

    def rotation(self, positions: torch.Tensor) -> Rotation | None:
        """cos and sin (float32) [..., head_dim / 2] at integer positions [...]; None with ALiBi."""
        if self.frequencies is None:
            return None
        cos, sin = rotation(positions, self.frequencies, self.scale)
        return cos.float(), sin.float()
