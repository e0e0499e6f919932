"""The product of tokens with a quantized weight, as a torch custom op.

torch's own products do not serve: on CUDA ``_weight_int8pack_mm`` computes each output in one thread, in float32 and
without coalescing (slower than 16 bits; see pytorch/pytorch pull request 190529), and ``_weight_int4pack_mm`` takes
bfloat16 only. No GPU has compared them yet: ``python -m benchmarks.gpu --parts products`` does.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F

from trtstream.plugins.quantized_weight import QuantizedWeight, dequantize

# Up to 64 tokens a product is bound by reading the weight, which the kernel does once, and more share what it reads. A
# larger product is bound by arithmetic, and then it pays to dequantize the weight first.
KERNEL_ROWS = 256


@torch.library.custom_op("trtstream::quantized_linear", mutates_args=())
def quantized_linear(
    x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    """x [N, in] times the transpose of a `QuantizedWeight`'s [out, in]: [N, out] in x's dtype."""
    if x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1":
        return linear_on_gpu(x, values, scales, zeros)
    return F.linear(x, dequantize(QuantizedWeight(values, scales, zeros), x.dtype))


def linear_on_gpu(
    x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    """`quantized_linear`, by a kernel where it serves."""
    if len(x) > KERNEL_ROWS:
        return F.linear(x, dequantize(QuantizedWeight(values, scales, zeros), x.dtype))
    from trtstream.plugins.cuda_quantized import launch_quantized_linear

    return launch_quantized_linear(x, values, scales, zeros)


@quantized_linear.register_fake
def _(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(len(x), len(values))
