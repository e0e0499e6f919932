"""The product of few tokens with a float weight on a GPU, in the Triton language, and what surrounds it in a layer.

Such a product takes as long as reading the weight, which happens once, for all tokens. In the same kernel tokens are
normalized before it (RMSNorm or LayerNorm), and the MLP's activation, with or without a gate, and the residual come
after it. All that is computed in float32. One token is multiplied and summed by the programs' threads; more are the
columns of products on the tensor cores, padded to 8, with rows of the weight.

No GPU has run it yet: it is tested in the Triton language's interpreter and compiled for sm_80, sm_90 and sm_120.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trtstream.plugins.cuda_chain import early_launch, fetch_rows, wait_for_last_kernel

PROGRAMS = 256  # at least, where the weight has rows enough: two for each of a large GPU's multiprocessors


@triton.jit
def moments(x, is_token, num_inputs, eps, LAYER_NORM: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr):
    """Mean (0 for RMSNorm) and inverse standard deviation [TOKENS, 1] of the tokens that begin at ``x`` [TOKENS, 1]."""
    mean = tl.zeros([TOKENS, 1], tl.float32)
    if LAYER_NORM:
        for begin in range(0, num_inputs, BLOCK):
            column = begin + tl.arange(0, BLOCK)[None, :]
            values = tl.load(x + column, mask=is_token & (column < num_inputs), other=0.0).to(tl.float32)
            mean += tl.sum(values, axis=1, keep_dims=True)
        mean = mean / num_inputs
    squares = tl.zeros([TOKENS, 1], tl.float32)
    for begin in range(0, num_inputs, BLOCK):
        column = begin + tl.arange(0, BLOCK)[None, :]
        exists = is_token & (column < num_inputs)
        values = tl.load(x + column, mask=exists, other=0.0).to(tl.float32)
        squares += tl.sum(tl.where(exists, (values - mean) * (values - mean), 0.0), axis=1, keep_dims=True)
    return mean, tl.rsqrt(squares / num_inputs + eps)


@triton.jit
def add_products(total, weights, x):
    """Add those of weights [rows, columns] and tokens x [tokens, columns], float32: one token's are summed later."""
    if x.shape[0] == 1:
        return total + weights.to(tl.float32) * x
    else:
        return tl.dot(weights, tl.trans(x.to(weights.dtype)), total, input_precision="ieee")


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """One of `trtstream.runtime.decoder.ACTIVATIONS`, of float32 values."""
    if ACTIVATION == "silu":
        return x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_pytorch_tanh":
        # (1 + tanh(y)) / 2 is sigmoid(2 y), and y is sqrt(2 / pi) (x + 0.044715 x ** 3).
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        tl.static_assert(ACTIVATION == "relu")
        return tl.maximum(x, 0.0)


@triton.jit(do_not_specialize=["num_tokens"])
def matvec_kernel(
    x,  # [num_tokens, num_inputs]
    weight,  # [num_outputs, num_inputs]; where GATED, the gate's rows and then as many others
    bias,  # [rows of the weight], or None
    norm_weight,  # [num_inputs], or None
    norm_bias,  # [num_inputs], or None
    residual,  # [num_tokens, num_outputs], or None
    out,  # [num_tokens, num_outputs]
    num_tokens,
    num_outputs,
    num_inputs,
    eps,
    LAYER_NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    CHAINED: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    NORM_INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    token = tl.arange(0, TOKENS)[:, None]
    is_token = token < num_tokens
    tokens = x + token * num_inputs
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
    is_output = output < num_outputs
    rows = weight + output.to(tl.int64) * num_inputs
    fetch_rows(weight, output, num_outputs, num_inputs, INPUTS, CHAINED)
    if GATED:
        fetch_rows(weight + num_outputs.to(tl.int64) * num_inputs, output, num_outputs, num_inputs, INPUTS, CHAINED)
    wait_for_last_kernel(CHAINED)
    if norm_weight is not None:
        mean, inverse = moments(tokens, is_token, num_inputs, eps, LAYER_NORM, TOKENS, NORM_INPUTS)

    total = tl.zeros([OUTPUTS, INPUTS if TOKENS == 1 else TOKENS], tl.float32)
    up = total
    for begin in tl.range(0, num_inputs, INPUTS, num_stages=STAGES):
        column = begin + tl.arange(0, INPUTS)[None, :]
        is_column = column < num_inputs
        values = tl.load(tokens + column, mask=is_token & is_column, other=0.0).to(tl.float32)
        if norm_weight is not None:
            values = (values - mean) * inverse * tl.load(norm_weight + column, mask=is_column, other=0.0).to(tl.float32)
            if norm_bias is not None:
                values += tl.load(norm_bias + column, mask=is_column, other=0.0).to(tl.float32)
        total = add_products(total, tl.load(rows + column, mask=is_output & is_column, other=0.0), values)
        if GATED:
            others = rows + num_outputs.to(tl.int64) * num_inputs + column
            up = add_products(up, tl.load(others, mask=is_output & is_column, other=0.0), values)

    if TOKENS == 1:
        total, up = tl.sum(total, axis=1, keep_dims=True), tl.sum(up, axis=1, keep_dims=True)
    if bias is not None:
        total += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)
        if GATED:
            up += tl.load(bias + num_outputs + output, mask=is_output, other=0.0).to(tl.float32)
    if ACTIVATION is not None:
        total = activate(total, ACTIVATION)
    if GATED:
        total *= up
    place = tl.trans(token) * num_outputs + output
    mask = tl.trans(is_token) & is_output
    if residual is not None:
        total += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


def matvec_constants(num_tokens: int, num_outputs: int, *, gated: bool, dtype: torch.dtype) -> dict[str, int]:
    """`matvec_kernel`'s tiles, warps and pipeline stages.

    A tile is 8 KB of the weight, of which two are on their way while a third is multiplied. Few outputs are shared out
    in thin, long tiles.
    """
    if num_tokens == 1:
        outputs = min(1 << max(num_outputs // PROGRAMS, 1).bit_length() - 1, 8 if gated else 16)
        tile = {"TOKENS": 1, "OUTPUTS": outputs, "INPUTS": 8192 // dtype.itemsize // outputs, "NORM_INPUTS": 4096}
    else:
        tile = {
            "TOKENS": max(triton.next_power_of_2(num_tokens), 8),
            "OUTPUTS": 16,
            "INPUTS": 512 // dtype.itemsize,
            "NORM_INPUTS": 1024,
        }
    return tile | {"STAGES": 3, "num_warps": 4}


def matvec(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    norm_eps: float = 0.0,
    layer_norm: bool = False,
    activation: str | None = None,
    gated: bool = False,
    residual: torch.Tensor | None = None,
    **tiles: int,
) -> torch.Tensor:
    """``residual + activation(norm(x) @ weight.T + bias)`` of few tokens x [N, in]: [N, out], in x's dtype.

    Weight [out, in] and all else have x's dtype and are contiguous. ``norm_weight`` [in] normalizes by RMSNorm, or by
    LayerNorm if ``layer_norm`` is true, which may have a ``norm_bias``. ``activation`` is one of
    `trtstream.runtime.decoder.ACTIVATIONS`. If the weight is ``gated``, it has 2 * out rows, and what the first half
    gives after the activation is multiplied by what the second gives. ``residual`` is [N, out]. ``tiles`` overrides
    `matvec_constants`.
    """
    x = x.contiguous()
    num_outputs, num_inputs = len(weight) // (2 if gated else 1), weight.shape[1]
    constants = matvec_constants(len(x), num_outputs, gated=gated, dtype=x.dtype) | tiles
    out = x.new_empty(len(x), num_outputs)
    with torch.cuda.device_of(x):
        matvec_kernel[(triton.cdiv(num_outputs, constants["OUTPUTS"]),)](
            x, weight, bias, norm_weight, norm_bias, residual, out, len(x), num_outputs, num_inputs, norm_eps,
            LAYER_NORM=layer_norm, ACTIVATION=activation, GATED=gated, **constants, **early_launch(x.device),
        )  # fmt: skip
    return out
