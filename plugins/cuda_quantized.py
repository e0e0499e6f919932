"""The product of a few tokens with an int8 or int4 weight, in the Triton language: each weight is read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trtstream.plugins.quantized_linear import GROUP

BLOCK_ROWS = 16  # of the weight: small, so that a small layer fills the chip too
BLOCK_COLUMNS = 128


@triton.jit
def int8_kernel(
    x_pointer, values_pointer, scales_pointer, out_pointer,
    num_tokens, num_rows, num_columns,
    BLOCK_TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    tokens = tl.arange(0, BLOCK_TOKENS)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_token, is_row = tokens < num_tokens, rows < num_rows
    total = tl.zeros((BLOCK_TOKENS, BLOCK_ROWS), tl.float32)
    for start in range(0, num_columns, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        is_column = columns < num_columns
        x = tl.load(x_pointer + tokens[:, None] * num_columns + columns, mask=is_token[:, None] & is_column, other=0.0)
        values = tl.load(
            values_pointer + rows[:, None].to(tl.int64) * num_columns + columns,
            mask=is_row[:, None] & is_column,
            other=0,
        )
        total = tl.dot(x, tl.trans(values.to(x.dtype)), total, input_precision="ieee")
    scales = tl.load(scales_pointer + rows, mask=is_row, other=0.0)
    tl.store(
        out_pointer + tokens[:, None] * num_rows + rows,
        (total * scales).to(out_pointer.dtype.element_ty),
        mask=is_token[:, None] & is_row,
    )


@triton.jit
def int4_kernel(
    x_pointer, values_pointer, scales_pointer, zeros_pointer, out_pointer,
    num_tokens, num_rows, num_columns,
    BLOCK_TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = GROUP // 2
    tokens = tl.arange(0, BLOCK_TOKENS)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_token, is_row = tokens < num_tokens, rows < num_rows
    half = tl.arange(0, HALF)
    total = tl.zeros((BLOCK_TOKENS, BLOCK_ROWS), tl.float32)
    for group in range(num_columns // GROUP):
        x_first = x_pointer + tokens[:, None] * num_columns + group * GROUP + half
        x_low = tl.load(x_first, mask=is_token[:, None], other=0.0)
        x_high = tl.load(x_first + HALF, mask=is_token[:, None], other=0.0)
        packed = tl.load(
            values_pointer + rows[:, None].to(tl.int64) * (num_columns // 2) + group * HALF + half,
            mask=is_row[:, None],
            other=0,
        )
        at = rows.to(tl.int64) * (num_columns // GROUP) + group
        scales = tl.load(scales_pointer + at, mask=is_row, other=0.0).to(tl.float32)
        zeros = tl.load(zeros_pointer + at, mask=is_row, other=0.0).to(tl.float32)
        # With values in [-8, 7] little cancels between the products and the zeros.
        low = ((packed & 15).to(tl.int8) - 8).to(x_low.dtype)
        high = ((packed >> 4).to(tl.int8) - 8).to(x_low.dtype)
        products = tl.dot(x_low, tl.trans(low), input_precision="ieee")
        products = tl.dot(x_high, tl.trans(high), products, input_precision="ieee")
        x_sum = tl.sum(x_low.to(tl.float32), 1) + tl.sum(x_high.to(tl.float32), 1)
        total += products * scales + x_sum[:, None] * (zeros + 8 * scales)
    tl.store(
        out_pointer + tokens[:, None] * num_rows + rows,
        total.to(out_pointer.dtype.element_ty),
        mask=is_token[:, None] & is_row,
    )


def launch_quantized_linear(
    x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    """See `trtstream.plugins.quantized_linear.quantized_linear`."""
    x = x.contiguous()
    out = x.new_empty(len(x), len(values))
    block_tokens = max(16, triton.next_power_of_2(len(x)))  # 16: the least that tensor cores take
    grid = (triton.cdiv(len(values), BLOCK_ROWS),)
    sizes = len(x), len(values), x.shape[1]
    if zeros is None:
        int8_kernel[grid](x, values, scales, out, *sizes, block_tokens, BLOCK_ROWS, BLOCK_COLUMNS)
    else:
        int4_kernel[grid](x, values, scales, zeros, out, *sizes, block_tokens, BLOCK_ROWS, GROUP)
    return out
