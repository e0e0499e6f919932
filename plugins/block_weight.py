"""Weights in blocks of 32 columns, in GGUF's formats Q8_0, Q4_0 and Q4_1, which the ``cpu`` target computes with.

A row is its blocks, one after the other. A block is a scale (float16), in Q4_1 a minimum (float16), and the integers of
32 columns: of 8 bits with a sign, or of 4 bits, where a byte has column i in its low bits and column i + 16 in its high
ones. So a .gguf file's tensors stay as they are. Rows whose columns are no multiple of 32 end in zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

COLUMNS = 32
TINY = 2.0**-24  # the smallest float16


@dataclass(frozen=True)
class BlockFormat:
    """Bits of an integer, and whether there is a minimum: ``scale * integer + minimum``.

    Without one a weight is ``scale * integer``, or with 4 bits ``scale * (integer - 8)``.
    """

    bits: int
    minimum: bool = False

    @property
    def block_bytes(self) -> int:
        return (4 if self.minimum else 2) + COLUMNS * self.bits // 8

    def row_bytes(self, columns: int) -> int:
        return math.ceil(columns / COLUMNS) * self.block_bytes


BLOCK_FORMATS = {"Q8_0": BlockFormat(8), "Q4_0": BlockFormat(4), "Q4_1": BlockFormat(4, minimum=True)}
"""By GGUF's names."""


class BlockWeight(NamedTuple):
    """A weight [out, in] as bytes: ``blocks`` uint8 [out, bytes of a row], ``format`` a name in `BLOCK_FORMATS`."""

    blocks: torch.Tensor
    format: str


def quantize_blocks(weight: torch.Tensor, name: str) -> torch.Tensor:
    """Round a weight [out, in] to ``Q8_0`` or ``Q4_1``: blocks uint8 [out, bytes of a row].

    The error is at most half a scale, and that of rounding scale and minimum to float16.
    """
    columns = weight.shape[1]
    groups = F.pad(weight.float(), (0, -columns % COLUMNS)).unflatten(1, (-1, COLUMNS))
    if name == "Q8_0":
        scales = (groups.abs().amax(dim=2, keepdim=True) / 127).half()
        integers = (groups / scales.float().clamp(min=TINY)).round().clamp(-127, 127).to(torch.int8)
        parts = [scales, integers]
    else:
        low, high = groups.aminmax(dim=2, keepdim=True)
        scales, minima = ((high - low) / 15).half(), low.half()
        steps = ((groups - minima.float()) / scales.float().clamp(min=TINY)).round().clamp(0, 15).to(torch.uint8)
        parts = [scales, minima, steps[..., :16] | steps[..., 16:] << 4]
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=2).flatten(1)


def dequantize_blocks(weight: BlockWeight) -> torch.Tensor:
    """A weight's values, float32 [out, in]; ``in`` is a multiple of 32."""
    kind = BLOCK_FORMATS[weight.format]
    blocks = weight.blocks.unflatten(1, (-1, kind.block_bytes))
    header = 4 if kind.minimum else 2
    numbers, integers = blocks[..., :header].contiguous().view(torch.float16).float(), blocks[..., header:]
    if kind.bits == 8:
        values = integers.contiguous().view(torch.int8).float()
    else:
        values = torch.cat((integers & 15, integers >> 4), dim=2).float() - (0 if kind.minimum else 8)
    values *= numbers[..., :1]
    return (values + numbers[..., 1:] if kind.minimum else values).flatten(1)
