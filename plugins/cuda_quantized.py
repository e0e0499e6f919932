"""The product of some tokens with an int8 or int4 weight, in the Triton language: each weight is read once.

A program multiplies up to 64 tokens with 16 rows of the weight, 256 columns at a time, so that enough bytes are on
their way to keep the memory busy. Where rows are too few to fill the GPU, their columns are split over several
programs, whose sums another kernel adds.

No GPU has run it yet: it is tested in the Triton language's interpreter and compiled for sm_80, sm_90 and sm_120.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trtstream.plugins import cuda_grid
from trtstream.plugins.quantized_weight import GROUP

BLOCK_ROWS = 16  # of the weight: small, so that a small layer fills the chip too
BLOCK_COLUMNS = 256
MAX_BLOCK_TOKENS = 64
MAX_SPLITS = 4
PROGRAMS = 4  # of a multiprocessor, at most, where columns are split
BLOCK_SUMS = 1024


@triton.jit
def store_products(products, out, tokens, rows, num_tokens, num_rows):
    """Store a program's products [tokens, rows] in its part of ``out`` [splits, num_tokens, num_rows]."""
    place = (tl.program_id(2).to(tl.int64) * num_tokens + tokens[:, None]) * num_rows + rows
    mask = (tokens < num_tokens)[:, None] & (rows < num_rows)
    tl.store(out + place, products.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_tokens"])  # it varies from prompt to prompt
def int8_kernel(
    x,  # [num_tokens, num_columns]
    values,  # [num_rows, num_columns] int8
    scales,  # [num_rows] float32
    out,  # [splits, num_tokens, num_rows]
    num_tokens, num_rows, num_columns,
    BLOCK_TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    is_row, is_token = rows < num_rows, tokens < num_tokens
    total = tl.zeros((BLOCK_TOKENS, BLOCK_ROWS), tl.float32)
    for start in range(tl.program_id(2) * BLOCK_COLUMNS, num_columns, tl.num_programs(2) * BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        is_column = columns < num_columns
        tile = tl.load(x + tokens[:, None] * num_columns + columns, mask=is_token[:, None] & is_column, other=0.0)
        place = rows[:, None].to(tl.int64) * num_columns + columns
        weights = tl.load(values + place, mask=is_row[:, None] & is_column, other=0)
        total = tl.dot(tile, tl.trans(weights.to(tile.dtype)), total, input_precision="ieee")
    products = total * tl.load(scales + rows, mask=is_row, other=0.0)
    store_products(products, out, tokens, rows, num_tokens, num_rows)


@triton.jit
def load_pairs(numbers, is_number, ROWS: tl.constexpr, PAIRS: tl.constexpr):
    """The numbers that pointers [ROWS, 2 * PAIRS] name, in float32: of each pair the first, and the second."""
    loaded = tl.load(numbers, mask=is_number, other=0.0).to(tl.float32)
    return tl.split(tl.reshape(loaded, (ROWS, PAIRS, 2)))


@triton.jit
def of_columns(numbers, ROWS: tl.constexpr, PAIRS: tl.constexpr, GROUP: tl.constexpr):
    """Numbers [ROWS, PAIRS] of groups, each for the GROUP columns of its own."""
    return tl.reshape(tl.broadcast_to(numbers[:, :, None], (ROWS, PAIRS, GROUP)), (ROWS, PAIRS * GROUP))


@triton.jit(do_not_specialize=["num_tokens"])  # it varies from prompt to prompt
def int4_kernel(
    x,  # [num_tokens, num_columns]
    values,  # [num_rows, num_columns / 2] uint8: a pair of groups in GROUP bytes
    scales,  # [num_rows, num_columns / GROUP]
    zeros,  # the same
    out,  # [splits, num_tokens, num_rows]
    num_tokens, num_rows, num_columns,
    BLOCK_TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    PAIRS: tl.constexpr = BLOCK_COLUMNS // (2 * GROUP)
    rows = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    is_row, is_token = (rows < num_rows)[:, None], (tokens < num_tokens)[:, None]
    row = rows[:, None].to(tl.int64)
    total = tl.zeros((BLOCK_TOKENS, BLOCK_ROWS), tl.float32)
    for start in range(tl.program_id(2) * BLOCK_COLUMNS, num_columns, tl.num_programs(2) * BLOCK_COLUMNS):
        byte = start // 2 + tl.arange(0, BLOCK_COLUMNS // 2)
        is_byte = byte < num_columns // 2
        packed = tl.load(values + row * (num_columns // 2) + byte, mask=is_row & is_byte, other=0)
        group = start // GROUP + tl.arange(0, 2 * PAIRS)
        is_group = is_row & (group < num_columns // GROUP)
        place = row * (num_columns // GROUP) + group
        scale_low, scale_high = load_pairs(scales + place, is_group, BLOCK_ROWS, PAIRS)
        zero_low, zero_high = load_pairs(zeros + place, is_group, BLOCK_ROWS, PAIRS)
        column = byte // GROUP * 2 * GROUP + byte % GROUP
        for side in tl.static_range(2):
            tile = tl.load(
                x + tokens[:, None] * num_columns + column + side * GROUP, mask=is_token & is_byte, other=0.0
            )
            scale = of_columns(scale_high if side else scale_low, BLOCK_ROWS, PAIRS, GROUP)
            zero = of_columns(zero_high if side else zero_low, BLOCK_ROWS, PAIRS, GROUP)
            weights = (((packed >> (4 * side)) & 15).to(tl.float32) * scale + zero).to(tile.dtype)
            total = tl.dot(tile, tl.trans(weights), total, input_precision="ieee")
    store_products(total, out, tokens, rows, num_tokens, num_rows)


@triton.jit(do_not_specialize=["size"])
def sum_kernel(
    sums,  # [SPLITS, size] float32
    out,  # [size]
    size,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(sums + split * size + place, mask=mask, other=0.0)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


def launch_quantized_linear(
    x: torch.Tensor,
    values: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    splits: int | None = None,
) -> torch.Tensor:
    """`quantized_linear.quantized_linear` by the kernels. The default of ``splits`` fills the GPU."""
    x = x.contiguous()
    num_tokens, num_columns = x.shape
    num_rows = len(values)
    block_tokens = min(max(16, triton.next_power_of_2(num_tokens)), MAX_BLOCK_TOKENS)  # 16: the least of tensor cores
    # Programs for the same rows follow each other, so that they find the weight in the GPU's cache.
    token_blocks, row_blocks = triton.cdiv(num_tokens, block_tokens), triton.cdiv(num_rows, BLOCK_ROWS)
    if splits is None:
        most = PROGRAMS * cuda_grid.multiprocessors(x.device)
        tiles = min(triton.cdiv(num_columns, BLOCK_COLUMNS), MAX_SPLITS)
        splits = cuda_grid.num_splits(token_blocks * row_blocks, tiles, most)
    grid = token_blocks, row_blocks, splits
    out = x.new_empty(num_tokens, num_rows)
    products = out if splits == 1 else x.new_empty(splits, num_tokens, num_rows, dtype=torch.float32)
    sizes = num_tokens, num_rows, num_columns, block_tokens, BLOCK_ROWS, BLOCK_COLUMNS
    with torch.cuda.device_of(x):
        stages = num_stages(block_tokens, x.dtype)
        if zeros is None:
            int8_kernel[grid](x, values, scales, products, *sizes, num_stages=stages)
        else:
            int4_kernel[grid](x, values, scales, zeros, products, *sizes, GROUP, num_stages=stages)
        if splits > 1:
            sum_kernel[(triton.cdiv(out.numel(), BLOCK_SUMS),)](products, out, out.numel(), splits, BLOCK_SUMS)
    return out


def num_stages(block_tokens: int, dtype: torch.dtype) -> int:
    """How many tiles are on their way at once: what the shared memory of every GPU holds."""
    return 1 if dtype == torch.float32 else 4 if block_tokens <= 32 else 2
