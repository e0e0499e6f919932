"""The product of a few tokens with an int8 or int4 weight, in the Triton language: each weight is read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trtstream.plugins.quantized_weight import GROUP

BLOCK_ROWS = 16  # of the weight: small, so that a small layer fills the chip too
BLOCK_COLUMNS = 128


@triton.jit(do_not_specialize=["num_tokens"])  # it varies from prompt to prompt
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


@triton.jit(do_not_specialize=["num_tokens"])  # it varies from prompt to prompt
def int4_kernel(
    x_pointer, values_pointer, scales_pointer, zeros_pointer, out_pointer,
    num_tokens, num_rows, num_columns,
    BLOCK_TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    tokens = tl.arange(0, BLOCK_TOKENS)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_token, is_row = tokens < num_tokens, rows < num_rows
    column = tl.arange(0, GROUP)
    total = tl.zeros((BLOCK_TOKENS, BLOCK_ROWS), tl.float32)
    for pair in range(num_columns // (2 * GROUP)):
        packed = tl.load(
            values_pointer + rows[:, None].to(tl.int64) * (num_columns // 2) + pair * GROUP + column,
            mask=is_row[:, None],
            other=0,
        )
        for side in tl.static_range(2):
            group = 2 * pair + side
            x = tl.load(
                x_pointer + tokens[:, None] * num_columns + group * GROUP + column, mask=is_token[:, None], other=0.0
            )
            index = rows.to(tl.int64) * (num_columns // GROUP) + group
            scales = tl.load(scales_pointer + index, mask=is_row, other=0.0).to(tl.float32)
            zeros = tl.load(zeros_pointer + index, mask=is_row, other=0.0).to(tl.float32)
            # With values in [-8, 7], products and zeros cancel little.
            values = (((packed >> (4 * side)) & 15).to(tl.int8) - 8).to(x.dtype)
            products = tl.dot(x, tl.trans(values), input_precision="ieee")
            total += products * scales + tl.sum(x.to(tl.float32), 1)[:, None] * (zeros + 8 * scales)
    tl.store(
        out_pointer + tokens[:, None] * num_rows + rows,
        total.to(out_pointer.dtype.element_ty),
        mask=is_token[:, None] & is_row,
    )


def launch_quantized_linear(
    x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    """`quantized_linear.quantized_linear` by the kernels."""
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
