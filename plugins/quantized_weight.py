"""Formats of quantized weights, and the conversion to and from them.

``int8`` has one scale for each row. ``int4`` has a scale and a zero for each group of 32 columns in a row, with two
columns in a byte; so a GGUF checkpoint's 4-bit weights, also in groups of 32, stay as they are. Activations keep the
engine's dtype, and so do embeddings, norms and the language-model head, which is either the embedding itself or as
sensitive.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from trtstream.errors import TrtstreamError

GROUP = 32


class QuantizedWeight(NamedTuple):
    """A weight [out, in], approximately ``values * scales + zeros``.

    ``int8``: ``values`` int8 [out, in], ``scales`` float32 [out, 1], ``zeros`` None. ``int4``: ``values`` uint8
    [out, in / 2]: of two adjacent groups the first is in the low bits and the second in the high bits;
    ``scales`` and ``zeros`` [out, in / GROUP], in the engine's dtype.
    """

    values: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None


def quantize(weight: torch.Tensor, quantization: str, dtype: torch.dtype) -> QuantizedWeight:
    """Round a weight [out, in] to ``int8`` or ``int4`` for an engine of ``dtype``.

    The error is at most half a scale, and for int4 the rounding of scale and zero to ``dtype`` in addition.
    """
    return _quantize_int8(weight.float()) if quantization == "int8" else _quantize_int4(weight.float(), dtype)


def _quantize_int8(weight: torch.Tensor) -> QuantizedWeight:
    scales = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return QuantizedWeight((weight / scales).round().clamp(-127, 127).to(torch.int8), scales)


def _quantize_int4(weight: torch.Tensor, dtype: torch.dtype) -> QuantizedWeight:
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.aminmax(dim=2)
    scales = ((high - low) / 15).clamp(min=torch.finfo(dtype).tiny).to(dtype)
    zeros = low.to(dtype)
    values = ((groups - zeros.float()[..., None]) / scales.float()[..., None]).round().clamp(0, 15).to(torch.uint8)
    return QuantizedWeight((values[:, ::2] | values[:, 1::2] << 4).flatten(1), scales, zeros)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
    """The weight [out, in] in ``dtype``."""
    if weight.zeros is None:
        return weight.values.to(dtype).mul_(weight.scales.to(dtype))
    packed = weight.values.unflatten(1, (-1, GROUP))
    values = torch.stack((packed & 15, packed >> 4), dim=2).flatten(1, 2).to(dtype)
    return values.mul_(weight.scales.to(dtype)[..., None]).add_(weight.zeros.to(dtype)[..., None]).flatten(1)


def check_columns(name: str, columns: int, quantization: str) -> None:
    """Raise TrtstreamError if ``quantization`` has no format for a weight of ``columns`` columns."""
    if quantization == "int4" and columns % (2 * GROUP):
        raise TrtstreamError(
            f"the weight of {name} has {columns} columns, and int4 takes multiples of {2 * GROUP}; "
            "use --quantization int8"
        )
