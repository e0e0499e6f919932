"""Streaming attention of one decode step on a GPU, in the Triton language (plugins/reference.py defines it).

One program attends from the queries of one key-value head of one session to its share of the cache: it rotates the
queries twice, to t for ring keys and to p(t) for sinks, so that no stored key is ever rotated again, and reads each
visible key and value once. Where sessions times heads are too few to fill the GPU, the cache is split over several
programs, as flash-decoding does, and the last of them to end merges their softmax sums. The new token never passes
through the cache on its way to its own query: one program writes it, and no program reads its slot.

No GPU has run it yet: it is tested in the Triton language's interpreter and compiled for sm_80, sm_90 and sm_120.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trtstream.plugins import cuda_grid
from trtstream.plugins.cuda_chain import early_launch, wait_for_last_kernel
from trtstream.plugins.cuda_tiles import (
    LOG2E,
    LOWEST,
    accumulate,
    dot_halves,
    half_block,
    load_halves,
    quantize,
    rotate,
    scale_of,
)
from trtstream.plugins.kv_cache import stored_vectors

PROGRAMS = 2  # of a multiprocessor, at most, where the cache is split


@triton.jit
def merge(peaks, totals, partials, first, splits, in_group, in_dim, dim, HEAD_DIM: tl.constexpr):
    """The attention [queries, dim] from the softmax sums of all splits, in their order; ``first`` [queries] are their
    places. They are read from the second-level cache, into which other multiprocessors wrote them."""
    peak = tl.full(first.shape, LOWEST, tl.float32)
    total = tl.zeros(first.shape, tl.float32)
    acc = tl.zeros([first.shape[0], dim.shape[0]], tl.float32)
    for split in tl.range(0, splits, loop_unroll_factor=2):
        place = first + split
        split_peak = tl.load(peaks + place, mask=in_group, other=LOWEST, cache_modifier=".cg")
        split_total = tl.load(totals + place, mask=in_group, other=0.0, cache_modifier=".cg")
        written = (split_total > 0)[:, None] & in_dim
        partial = partials + place[:, None] * HEAD_DIM + dim
        split_acc = tl.load(partial, mask=written, other=0.0, cache_modifier=".cg")
        new_peak = tl.maximum(peak, split_peak)
        shrink, weight = tl.exp2(peak - new_peak), tl.exp2(split_peak - new_peak)
        total = total * shrink + split_total * weight
        acc = acc * shrink[:, None] + split_acc * weight[:, None]
        peak = new_peak
    return acc / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def decode_kernel(
    qkv,  # [B, (HEADS + 2 * KV_HEADS) * HEAD_DIM]
    cache,  # [sessions, 2, KV_HEADS, WIDTH, HEAD_DIM], sessions ``session_stride`` elements apart
    scales,  # [sessions, 2, KV_HEADS, WIDTH] float32, sessions ``scale_stride`` elements apart, or None
    rows,  # [B, 6] int64
    rotation,  # [B, 4, HEAD_DIM / 2] float32, or None
    slopes,  # [HEADS] float32, or None
    out,  # [B, HEADS, HEAD_DIM], where there is one split
    peaks,  # [B, HEADS, splits] float32, where there are several
    totals,  # the same
    partials,  # [B, HEADS, splits, HEAD_DIM] float32, where there are several
    arrivals,  # int32, of each session and second program number: 0 before and after a launch
    session_stride,
    scale_stride,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    MAX_SINKS: tl.constexpr,
    SPLIT: tl.constexpr,
    CHAINED: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    GROUP: tl.constexpr = HEADS // KV_HEADS
    GROUP_TILES: tl.constexpr = (GROUP + GROUP_BLOCK - 1) // GROUP_BLOCK
    HALF: tl.constexpr = HEAD_DIM // 2
    RING: tl.constexpr = WIDTH - MAX_SINKS
    batch = tl.program_id(0)
    kv_head = tl.program_id(1) // GROUP_TILES
    group_tile = tl.program_id(1) % GROUP_TILES
    split, splits = tl.program_id(2), tl.num_programs(2)

    wait_for_last_kernel(CHAINED)
    row = rows + batch * 6
    lane = tl.load(row)
    write = tl.load(row + 1).to(tl.int32)
    num_sinks = tl.load(row + 2).to(tl.int32)
    ring_count = tl.load(row + 3).to(tl.int32)
    newest = tl.load(row + 4).to(tl.int32)
    cache_position = tl.load(row + 5).to(tl.int32)
    is_session = lane >= 0

    half = tl.arange(0, HALF_BLOCK)
    in_half = half < HALF
    dim = tl.arange(0, 2 * HALF_BLOCK)
    in_dim = dim < HEAD_DIM
    member = group_tile * GROUP_BLOCK + tl.arange(0, GROUP_BLOCK)
    in_group = member < GROUP
    head = kv_head * GROUP + member

    token = qkv + batch * (HEADS + 2 * KV_HEADS) * HEAD_DIM
    first, second = load_halves(token + head[:, None] * HEAD_DIM, half, in_group[:, None] & in_half, HALF)
    key_first, key_second = load_halves(token + (HEADS + kv_head) * HEAD_DIM, half, in_half, HALF)
    value = tl.load(token + (HEADS + KV_HEADS + kv_head) * HEAD_DIM + dim, mask=in_dim, other=0.0)
    sink_first, sink_second = first, second
    if rotation is not None:
        cos, sin = load_halves(rotation + batch * 4 * HALF, half, in_half, HALF)
        sink_cos, sink_sin = load_halves(rotation + batch * 4 * HALF + 2 * HALF, half, in_half, HALF)
        sink_first, sink_second = rotate(first, second, sink_cos, sink_sin)
        first, second = rotate(first, second, cos, sin)
        key_first, key_second = rotate(key_first, key_second, cos, sin)
    dtype = qkv.dtype.element_ty
    first, second = first.to(dtype), second.to(dtype)
    sink_first, sink_second = sink_first.to(dtype), sink_second.to(dtype)

    keys = cache + lane * session_stride + kv_head * WIDTH * HEAD_DIM
    values = keys + KV_HEADS * WIDTH * HEAD_DIM
    has_token = is_session & (split == 0)
    writes = has_token & (group_tile == 0)
    key_scale, value_scale = 1.0, 1.0
    if scales is not None:
        stored: tl.constexpr = cache.dtype.element_ty
        key_scale = tl.maximum(scale_of(key_first, stored), scale_of(key_second, stored))
        value_scale = scale_of(value, stored)
        key_first, key_second = quantize(key_first, key_scale, stored), quantize(key_second, key_scale, stored)
        value = quantize(value, value_scale, stored)
        key_scales = scales + lane * scale_stride + kv_head * WIDTH
        value_scales = key_scales + KV_HEADS * WIDTH
        tl.store(key_scales + write, key_scale, mask=writes)
        tl.store(value_scales + write, value_scale, mask=writes)
    else:
        key_first, key_second = key_first.to(dtype), key_second.to(dtype)
    tl.store(keys + write * HEAD_DIM + half, key_first, mask=in_half & writes)
    tl.store(keys + write * HEAD_DIM + HALF + half, key_second, mask=in_half & writes)
    tl.store(values + write * HEAD_DIM + dim, value, mask=in_dim & writes)

    # The softmax begins with the new token alone, at distance 0, in the first split, and empty in the others.
    products = first.to(tl.float32) * key_first.to(tl.float32) + second.to(tl.float32) * key_second.to(tl.float32)
    peak = tl.where(has_token, tl.sum(products, axis=1) * scale * key_scale, LOWEST)
    total = tl.where(has_token, 1.0, tl.zeros([GROUP_BLOCK], tl.float32))
    acc = tl.where(has_token, value.to(tl.float32) * value_scale, tl.zeros([GROUP_BLOCK, 2 * HALF_BLOCK], tl.float32))
    if slopes is not None:
        slope = tl.load(slopes + head, mask=in_group, other=0.0) * LOG2E

    # Slots from here on hold nothing visible: a young session's cost grows with what it holds.
    used = tl.where(ring_count > newest + 1, WIDTH, MAX_SINKS + newest + 1)
    used = tl.where(ring_count == 0, num_sinks, used)
    used = tl.where(is_session, used, 0)
    for begin in range(split * BLOCK, used, splits * BLOCK):
        slots = begin + tl.arange(0, BLOCK)
        is_sink = slots < num_sinks
        age = newest - (slots - MAX_SINKS)
        age = tl.where(age < 0, age + RING, age)
        in_ring = (slots >= MAX_SINKS) & (slots < WIDTH) & (age < ring_count)
        visible = (is_sink | in_ring) & (slots != write)

        place = slots * HEAD_DIM
        tile = in_half[:, None] & visible
        tile_first, tile_second = load_halves(keys + place, half[:, None], tile, HALF)
        scores = dot_halves(first, second, tile_first, tile_second)
        if begin < num_sinks:
            sink_scores = dot_halves(sink_first, sink_second, tile_first, tile_second)
            scores = tl.where(is_sink, sink_scores, scores)
        scores = scores * scale
        if scales is not None:
            scores = scores * tl.load(key_scales + slots, mask=visible, other=0.0)
        if slopes is not None:
            distance = tl.where(is_sink, cache_position - slots, age)
            scores = scores - slope[:, None] * distance.to(tl.float32)
        scores = tl.where(visible, scores, float("-inf"))
        tile_values = tl.load(values + place[:, None] + dim, mask=visible[:, None] & in_dim, other=0.0)
        if scales is not None:
            tile_scales = tl.load(value_scales + slots, mask=visible, other=0.0)
            tile_values = (tile_values.to(tl.float32) * tile_scales[:, None]).to(dtype)
        peak, total, acc = accumulate(scores, tile_values, peak, total, acc)

    index = batch * HEADS + head
    if SPLIT:
        place = index * splits + split
        tl.store(peaks + place, peak, mask=in_group)
        tl.store(totals + place, total, mask=in_group)
        saw_keys = in_group & (total > 0)
        tl.store(partials + place[:, None] * HEAD_DIM + dim, acc, mask=saw_keys[:, None] & in_dim)
        # The atomic addition releases what the program's threads have stored before the barrier, and acquires what
        # programs that arrived earlier have. The last one leaves the counter as it was, for the next launch.
        tl.debug_barrier()
        arrival = arrivals + batch * tl.num_programs(1) + tl.program_id(1)
        if tl.atomic_add(arrival, 1) == splits - 1:
            tl.store(arrival, 0)
            merged = merge(peaks, totals, partials, index * splits, splits, in_group, in_dim, dim, HEAD_DIM)
            tl.store(out + index[:, None] * HEAD_DIM + dim, merged.to(dtype), mask=in_group[:, None] & in_dim)
    else:
        result = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out + index[:, None] * HEAD_DIM + dim, result.to(dtype), mask=in_group[:, None] & in_dim)


def decode_constants(
    heads: int, kv_heads: int, head_dim: int, width: int, max_sinks: int, dtype: torch.dtype, kv_dtype: torch.dtype
) -> dict[str, int]:
    """`decode_kernel`'s constants except SPLIT: sizes, tiles, warps and pipeline stages. ``width`` is W.

    A program takes all queries of a key-value head, up to 128, so that keys are read once; a dot product takes at least
    16. float32 uses no tensor cores here and keeps its tiles in registers, so they are small; so are those of
    a quantized cache with many queries, as dequantizing takes registers.
    """
    exact = dtype == torch.float32
    group_block = min(max(16, triton.next_power_of_2(heads // kv_heads)), 16 if exact else 128)
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "WIDTH": width,
        "MAX_SINKS": max_sinks,
        "GROUP_BLOCK": group_block,
        "HALF_BLOCK": half_block(head_dim),
        "BLOCK": 32 if exact or (kv_dtype != dtype and group_block > 32) else 64,
        "num_warps": 8 if exact or group_block > 32 else 4,
        "num_stages": 3,
    }


def launch_decode(
    qkv: torch.Tensor,
    cache: torch.Tensor,
    rows: torch.Tensor,
    rotation: torch.Tensor | None,
    slopes: torch.Tensor | None,
    arrivals: torch.Tensor,
    max_sinks: int,
    splits: int | None = None,
    **tiles: int,
) -> torch.Tensor:
    """`cuda_ops.decode_attention` by the kernels.

    ``splits`` is a power of two. Its default fills the GPU and depends on no session's state, because a CUDA graph
    replays it. ``tiles`` overrides `decode_constants`.
    """
    batch = len(qkv)
    vectors = stored_vectors(cache)
    numbers, scales = vectors.numbers, vectors.scales
    _, _, kv_heads, width, head_dim = numbers.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    constants = decode_constants(heads, kv_heads, head_dim, width, max_sinks, qkv.dtype, cache.dtype) | tiles
    programs = kv_heads * triton.cdiv(heads // kv_heads, constants["GROUP_BLOCK"])
    if splits is None:
        most = PROGRAMS * cuda_grid.multiprocessors(qkv.device)
        splits = cuda_grid.num_splits(batch * programs, triton.cdiv(width, constants["BLOCK"]), most)
    out = qkv.new_empty(batch, heads * head_dim)
    peaks = totals = partials = None
    if splits > 1:
        peaks, totals = qkv.new_empty(2, batch, heads, splits, dtype=torch.float32)
        partials = qkv.new_empty(batch, heads, splits, head_dim, dtype=torch.float32)
    with torch.cuda.device_of(qkv):
        decode_kernel[batch, programs, splits](
            qkv, numbers, scales, rows, rotation, slopes, out, peaks, totals, partials, arrivals,
            numbers.stride(0), 0 if scales is None else scales.stride(0), LOG2E.value * head_dim**-0.5,
            SPLIT=splits > 1, **constants, **early_launch(qkv.device),
        )  # fmt: skip
    return out
