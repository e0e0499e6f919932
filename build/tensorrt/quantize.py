"""Weight-only quantization in the formats of TensorRT's dequantize layer, which has scales and no zeros.

``int8``: one scale for each row. ``int4``: one for each group of 32 columns in a row, two columns in a byte.
"""

from __future__ import annotations

import torch

GROUP = 32


def quantize(weight: torch.Tensor, quantization: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight [out, in] to ``int8`` or ``int4`` for an engine of ``dtype``: values and scales (in ``dtype``).

    ``int8``: values int8 [out, in], scales [out]. ``int4``: values uint8 [out, in / 2], in each byte two neighbouring
    columns in two's complement, the first in the low bits; scales [out, in / GROUP], so ``in`` is a multiple of GROUP.
    The error is at most half a scale.
    """
    if quantization == "int8":
        return _round(weight, 127, dtype)
    values, scales = _round(weight.unflatten(1, (-1, GROUP)), 7, dtype)
    bits = values.flatten(1).view(torch.uint8) & 15
    return bits[:, ::2] | bits[:, 1::2] << 4, scales


def dequantize(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weight [out, in] that TensorRT computes with, in the dtype of the scales."""
    if values.dtype == torch.int8:
        return values.to(scales.dtype) * scales[:, None]
    bits = torch.stack((values << 4, values & 0xF0), dim=2).flatten(1).view(torch.int8)
    return ((bits >> 4).to(scales.dtype).unflatten(1, (-1, GROUP)) * scales[..., None]).flatten(1)


def _round(weight: torch.Tensor, largest: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers of at most ``largest`` (int8) and their scales, one over the last dimension."""
    weight = weight.float()
    scales = (weight.abs().amax(dim=-1) / largest).clamp(min=torch.finfo(dtype).tiny).to(dtype)
    values = (weight / scales.float()[..., None]).round().clamp(-largest, largest)
    return values.to(torch.int8), scales
