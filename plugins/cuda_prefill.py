"""Streaming attention of a chunk of tokens on a GPU, in the Triton language: equivalent to a step for each token.

One program attends from a tile of the chunk's queries, of one head, to three runs of keys in turn, with one running
softmax: the sinks (queries rotated to p(t)), the old ring and the chunk itself (queries rotated to t). Keys are counted
from the chunk's first token, so the old ring's are negative, and each query sees its own share of them by age.

A chunk's place and length are in memory of the GPU, so that a CUDA graph can replay the kernels for any chunk of up to
T tokens. The rest is padding.

The chunk's keys are rotated beforehand by a kernel of their own: in the attention, every tile of queries of every head
would rotate them again. With a quantized cache that kernel quantizes keys and values, too, and the attention reads what
the cache will hold, as single steps would. The chunk's sinks are written before the attention, since nothing is evicted
by them; its ring tokens after, as the slots they take still hold keys that the chunk's first queries see.

No GPU has run it yet: it is tested in the Triton language's interpreter and compiled for sm_80, sm_90 and sm_120.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

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


@triton.jit
def load_chunk(chunk):
    """The fields of a `decode_plan.ChunkRow`, and how many of its tokens are sinks."""
    lane, first, length = tl.load(chunk), tl.load(chunk + 1), tl.load(chunk + 2).to(tl.int32)
    sinks, ring_first = tl.load(chunk + 3).to(tl.int32), tl.load(chunk + 4)
    new_sinks = tl.minimum(tl.maximum(sinks - first, 0), length).to(tl.int32)
    return lane, first, length, sinks, ring_first, new_sinks


@triton.jit
def moved(pointer, offset):
    """``pointer + offset``; None for None."""
    result = None
    if pointer is not None:
        result = pointer + offset
    return result


@triton.jit
def rotated_halves(vectors, rotation, half, mask, HALF: tl.constexpr):
    """Both halves of ``vectors`` [tokens], in float32, and rotated unless ``rotation`` [tokens] is None."""
    first, second = load_halves(vectors, half, mask, HALF)
    if rotation is not None:
        cos, sin = load_halves(rotation, half, mask, HALF)
        first, second = rotate(first, second, cos, sin)
    return first, second


@triton.jit
def rotate_keys_kernel(
    qkv,  # [T, (HEADS + 2 * KV_HEADS) * HEAD_DIM]
    rotation,  # [T, 4, HEAD_DIM / 2] float32
    keys,  # [T, KV_HEADS, HEAD_DIM]
    chunk,  # a ChunkRow, [5] int64
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    HALF: tl.constexpr = HEAD_DIM // 2
    kv_head = tl.program_id(1)
    token = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)[:, None]
    half = tl.arange(0, HALF_BLOCK)
    _, _, length, _, _, _ = load_chunk(chunk)
    mask = (token < length) & (half < HALF)
    projected = qkv + (token * (HEADS + 2 * KV_HEADS) + HEADS + kv_head) * HEAD_DIM
    first, second = rotated_halves(projected, rotation + token * 4 * HALF, half, mask, HALF)
    key = keys + (token * KV_HEADS + kv_head) * HEAD_DIM + half
    tl.store(key, first.to(keys.dtype.element_ty), mask=mask)
    tl.store(key + HALF, second.to(keys.dtype.element_ty), mask=mask)


@triton.jit
def quantize_kernel(
    qkv,  # [T, (HEADS + 2 * KV_HEADS) * HEAD_DIM]
    rotation,  # [T, 4, HEAD_DIM / 2] float32, or None
    vectors,  # keys, rotated, and values: [T, 2, KV_HEADS, HEAD_DIM]
    chunk_scales,  # [T, 2, KV_HEADS] float32
    chunk,  # a ChunkRow, [5] int64
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    HALF: tl.constexpr = HEAD_DIM // 2
    kv_head = tl.program_id(1)
    token = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)[:, None]
    half = tl.arange(0, HALF_BLOCK)
    dim = tl.arange(0, 2 * HALF_BLOCK)
    _, _, length, _, _, _ = load_chunk(chunk)
    in_chunk = token < length
    mask = in_chunk & (half < HALF)
    projected = qkv + (token * (HEADS + 2 * KV_HEADS) + HEADS + kv_head) * HEAD_DIM
    first, second = rotated_halves(projected, moved(rotation, token * 4 * HALF), half, mask, HALF)
    values = tl.load(projected + KV_HEADS * HEAD_DIM + dim, mask=in_chunk & (dim < HEAD_DIM), other=0.0)
    stored: tl.constexpr = vectors.dtype.element_ty
    key_scale = tl.maximum(scale_of(first, stored), scale_of(second, stored))[:, None]
    value_scale = scale_of(values, stored)[:, None]
    place = token * 2 * KV_HEADS + kv_head
    tl.store(chunk_scales + place, key_scale, mask=in_chunk)
    tl.store(chunk_scales + place + KV_HEADS, value_scale, mask=in_chunk)
    key = vectors + place * HEAD_DIM + half
    tl.store(key, quantize(first, key_scale, stored), mask=mask)
    tl.store(key + HALF, quantize(second, key_scale, stored), mask=mask)
    value = vectors + (place + KV_HEADS) * HEAD_DIM + dim
    tl.store(value, quantize(values, value_scale, stored), mask=in_chunk & (dim < HEAD_DIM))


@triton.jit
def write_kernel(
    keys,  # the chunk's, rotated: [T, KV_HEADS, HEAD_DIM], tokens ``key_stride`` elements apart
    values,  # [T, KV_HEADS, HEAD_DIM], tokens ``value_stride`` elements apart
    chunk_scales,  # [T, 2, KV_HEADS] float32, or None
    cache,  # [sessions, 2, KV_HEADS, WIDTH, HEAD_DIM], sessions ``session_stride`` elements apart
    scales,  # [sessions, 2, KV_HEADS, WIDTH] float32, sessions ``scale_stride`` elements apart, or None
    chunk,  # a ChunkRow, [5] int64
    key_stride,
    value_stride,
    session_stride,
    scale_stride,
    SINKS: tl.constexpr,  # write the chunk's sinks, and else its ring tokens: the last that fill the ring
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    MAX_SINKS: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    RING: tl.constexpr = WIDTH - MAX_SINKS
    lane, first, length, sinks, _, new_sinks = load_chunk(chunk)
    if SINKS:
        begin, end = 0, new_sinks
    else:
        begin, end = tl.maximum(new_sinks, length - RING), length
    kv_head = tl.program_id(1)
    step = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    token = (begin + step).to(tl.int64)
    dim = tl.arange(0, DIM_BLOCK)
    mask = (token < end) & (dim < HEAD_DIM)
    number = first + token
    slot = number if SINKS else MAX_SINKS + (number - sinks) % RING
    place = kv_head * WIDTH + slot
    target = cache + lane * session_stride + place * HEAD_DIM + dim
    offset = kv_head * HEAD_DIM + dim
    tl.store(target, tl.load(keys + token * key_stride + offset, mask=mask), mask=mask)
    target += KV_HEADS * WIDTH * HEAD_DIM
    tl.store(target, tl.load(values + token * value_stride + offset, mask=mask), mask=mask)
    if scales is not None:
        written = token < end
        source = chunk_scales + token * 2 * KV_HEADS + kv_head
        target_scale = scales + lane * scale_stride + place
        tl.store(target_scale, tl.load(source, mask=written), mask=written)
        target_scale += KV_HEADS * WIDTH
        tl.store(target_scale, tl.load(source + KV_HEADS, mask=written), mask=written)


@triton.jit
def attend(
    first, second, keys, values, key_scales, value_scales, exists, visible, distance, slope, scale, peak, total, acc,
    HEAD_DIM: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    """Add a tile of keys to the softmax.

    ``keys`` and ``values`` [keys] point to vectors that exist where ``exists`` [keys] is true, ``key_scales`` and
    ``value_scales`` [keys] to their scales, or are None; ``visible`` and ``distance`` are [queries, keys]; ``slope`` is
    None without ALiBi.
    """
    half = tl.arange(0, HALF_BLOCK)
    dim = tl.arange(0, 2 * HALF_BLOCK)
    in_half = (half < HEAD_DIM // 2)[:, None]
    key_first, key_second = load_halves(keys, half[:, None], in_half & exists, HEAD_DIM // 2)
    scores = dot_halves(first, second, key_first, key_second) * scale
    if key_scales is not None:
        scores = scores * tl.load(key_scales, mask=exists, other=0.0)
    if slope is not None:
        scores = scores - slope * distance.to(tl.float32)
    scores = tl.where(visible & exists, scores, float("-inf"))
    tile = tl.load(values[:, None] + dim, mask=exists[:, None] & (dim < HEAD_DIM), other=0.0)
    if value_scales is not None:
        tile_scales = tl.load(value_scales, mask=exists, other=0.0)
        tile = (tile.to(tl.float32) * tile_scales[:, None]).to(first.dtype)
    return accumulate(scores, tile, peak, total, acc)


@triton.jit
def prefill_kernel(
    qkv,  # [T, (HEADS + 2 * KV_HEADS) * HEAD_DIM]
    chunk_keys,  # rotated: [T, KV_HEADS, HEAD_DIM], tokens ``key_stride`` elements apart
    chunk_values,  # [T, KV_HEADS, HEAD_DIM], tokens ``value_stride`` elements apart
    chunk_scales,  # [T, 2, KV_HEADS] float32, or None
    cache,  # [sessions, 2, KV_HEADS, WIDTH, HEAD_DIM]: the chunk's sinks are in it, its ring tokens are not
    scales,  # [sessions, 2, KV_HEADS, WIDTH] float32, or None
    chunk,  # a ChunkRow, [5] int64
    rotation,  # [T, 4, HEAD_DIM / 2] float32, or None
    slopes,  # [HEADS] float32, or None
    out,  # [T, HEADS, HEAD_DIM]
    key_stride,
    value_stride,
    session_stride,
    scale_stride,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    MAX_SINKS: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    HALF: tl.constexpr = HEAD_DIM // 2
    RING: tl.constexpr = WIDTH - MAX_SINKS
    lane, first_t, length, sinks, ring_first, new_sinks = load_chunk(chunk)
    old_count = tl.minimum(tl.maximum(first_t - ring_first, 0), RING).to(tl.int32)  # ring tokens before the chunk
    newest = (tl.maximum(first_t - 1 - sinks, 0) % RING).to(tl.int32)  # ring index of the newest of them
    cache_position = tl.minimum(first_t, sinks + RING - 1).to(tl.int32)  # p of the chunk's first token
    ring_begin = tl.maximum(ring_first - first_t, new_sinks).to(tl.int32)  # the chunk's first token in the ring

    begin = tl.program_id(0) * BLOCK_T
    end = tl.minimum(begin + BLOCK_T, length)
    head = tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)

    query = (begin + tl.arange(0, BLOCK_T))[:, None]
    position = tl.minimum(cache_position + query, sinks + RING - 1)
    half = tl.arange(0, HALF_BLOCK)
    dim = tl.arange(0, 2 * HALF_BLOCK)
    in_chunk = query < length
    mask = in_chunk & (half < HALF)
    token = query.to(tl.int64)
    first, second = load_halves(qkv + (token * (HEADS + 2 * KV_HEADS) + head) * HEAD_DIM, half, mask, HALF)
    sink_first, sink_second = first, second
    if rotation is not None:
        angles = rotation + token * 4 * HALF
        cos, sin = load_halves(angles, half, mask, HALF)
        sink_cos, sink_sin = load_halves(angles + 2 * HALF, half, mask, HALF)
        sink_first, sink_second = rotate(first, second, sink_cos, sink_sin)
        first, second = rotate(first, second, cos, sin)
    dtype = qkv.dtype.element_ty
    first, second = first.to(dtype), second.to(dtype)
    sink_first, sink_second = sink_first.to(dtype), sink_second.to(dtype)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + head) * LOG2E

    peak = tl.full([BLOCK_T], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    acc = tl.zeros([BLOCK_T, 2 * HALF_BLOCK], tl.float32)
    keys = cache + lane * session_stride + kv_head * WIDTH * HEAD_DIM
    values = keys + KV_HEADS * WIDTH * HEAD_DIM
    key_scales = moved(scales, lane * scale_stride + kv_head * WIDTH)
    value_scales = moved(key_scales, KV_HEADS * WIDTH)

    num_sinks = tl.minimum(sinks, cache_position + end)
    for tile in range(0, num_sinks, BLOCK):
        key = tile + tl.arange(0, BLOCK)
        peak, total, acc = attend(
            sink_first, sink_second, keys + key * HEAD_DIM, values + key * HEAD_DIM,
            moved(key_scales, key), moved(value_scales, key), key < num_sinks, key <= position,
            position - key, slope, scale, peak, total, acc, HEAD_DIM, HALF_BLOCK,
        )  # fmt: skip

    for tile in range(tl.maximum(-old_count, begin - RING + 1), 0, BLOCK):
        key = tile + tl.arange(0, BLOCK)
        index = newest + 1 + key
        slot = MAX_SINKS + tl.where(index < 0, index + RING, index)
        peak, total, acc = attend(
            first, second, keys + slot * HEAD_DIM, values + slot * HEAD_DIM,
            moved(key_scales, slot), moved(value_scales, slot), key < 0, query - key < RING,
            query - key, slope, scale, peak, total, acc, HEAD_DIM, HALF_BLOCK,
        )  # fmt: skip

    keys = chunk_keys + kv_head * HEAD_DIM
    values = chunk_values + kv_head * HEAD_DIM
    key_scales = moved(chunk_scales, kv_head)
    value_scales = moved(key_scales, KV_HEADS)
    for tile in range(tl.maximum(ring_begin, begin - RING + 1), end, BLOCK):
        key = tile + tl.arange(0, BLOCK)
        row = key.to(tl.int64)
        peak, total, acc = attend(
            first, second, keys + row * key_stride, values + row * value_stride,
            moved(key_scales, row * 2 * KV_HEADS), moved(value_scales, row * 2 * KV_HEADS), key < end,
            (key <= query) & (query - key < RING), query - key, slope, scale, peak, total, acc, HEAD_DIM, HALF_BLOCK,
        )  # fmt: skip

    # A query always sees itself; rows after the chunk's end may hold anything and are not stored.
    place = (query.to(tl.int64) * HEADS + head) * HEAD_DIM + dim
    tl.store(out + place, (acc / total[:, None]).to(dtype), mask=in_chunk & (dim < HEAD_DIM))


def prefill_constants(
    heads: int, kv_heads: int, head_dim: int, width: int, max_sinks: int, dtype: torch.dtype, kv_dtype: torch.dtype
) -> dict[str, int]:
    """`prefill_kernel`'s constants: sizes, tiles, warps and pipeline stages. ``width`` is W.

    A quantized cache's tiles are smaller, as dequantizing them takes registers.
    """
    exact = dtype == torch.float32
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "WIDTH": width,
        "MAX_SINKS": max_sinks,
        "HALF_BLOCK": half_block(head_dim),
        "BLOCK_T": 32 if exact else 128 if kv_dtype == dtype else 64,
        "BLOCK": 32 if exact or kv_dtype != dtype else 64,
        "num_warps": 8,
        "num_stages": 2,
    }


def launch_prefill(
    qkv: torch.Tensor,
    cache: torch.Tensor,
    row: torch.Tensor,
    rotation: torch.Tensor | None,
    slopes: torch.Tensor | None,
    max_sinks: int,
    **tiles: int,
) -> torch.Tensor:
    """`cuda_ops.chunk_attention` by the kernels; ``tiles`` overrides `prefill_constants`.

    What is launched depends on T alone, because a CUDA graph replays it.
    """
    length = len(qkv)
    cached = stored_vectors(cache)
    numbers, scales, chunk_scales = cached.numbers, cached.scales, None
    session_stride, scale_stride = numbers.stride(0), 0 if scales is None else scales.stride(0)
    _, _, kv_heads, width, head_dim = numbers.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    constants = prefill_constants(heads, kv_heads, head_dim, width, max_sinks, qkv.dtype, cache.dtype) | tiles
    half, block = constants["HALF_BLOCK"], constants["BLOCK"]
    out = qkv.new_empty(length, heads * head_dim)
    _, keys, values = qkv.split([n * head_dim for n in (heads, kv_heads, kv_heads)], dim=1)

    def write(sinks: bool) -> None:
        write_kernel[triton.cdiv(length, block), kv_heads](
            keys, values, chunk_scales, numbers, scales, row,
            keys.stride(0), values.stride(0), session_stride, scale_stride, SINKS=sinks,
            KV_HEADS=kv_heads, HEAD_DIM=head_dim, WIDTH=width, MAX_SINKS=max_sinks, DIM_BLOCK=2 * half, BLOCK=block,
        )  # fmt: skip

    with torch.cuda.device_of(qkv):
        if scales is not None:
            vectors = numbers.new_empty(length, 2, kv_heads * head_dim)
            chunk_scales = scales.new_empty(length, 2, kv_heads)
            quantize_kernel[triton.cdiv(length, block), kv_heads](
                qkv, rotation, vectors, chunk_scales, row,
                HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, HALF_BLOCK=half, BLOCK=block,
            )  # fmt: skip
            keys, values = vectors.unbind(1)
        elif rotation is not None:
            keys = qkv.new_empty(length, kv_heads * head_dim)
            rotate_keys_kernel[triton.cdiv(length, block), kv_heads](
                qkv, rotation, keys, row,
                HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, HALF_BLOCK=half, BLOCK=block,
            )  # fmt: skip
        write(sinks=True)
        prefill_kernel[triton.cdiv(length, constants["BLOCK_T"]), heads](
            qkv, keys, values, chunk_scales, numbers, scales, row, rotation, slopes, out,
            keys.stride(0), values.stride(0), session_stride, scale_stride, LOG2E.value * head_dim**-0.5, **constants,
        )  # fmt: skip
        write(sinks=False)
    return out
