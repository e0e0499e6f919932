"""Operations on a tile of queries and a tile of keys that the decode and the prefill kernel share, in Triton.

A head's vectors are held as two halves wherever they are rotated, as rotation pairs dimension i with i + head_dim / 2:
two small tiles need no shuffling, and a half may be any number of dimensions, padded with zeros to a power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trtstream.plugins import kv_cache

LOG2E = tl.constexpr(1.4426950408889634)
# Below every score, and finite: a tile without visible keys leaves a softmax unchanged and makes no NaN.
LOWEST = tl.constexpr(-1e30)
# The same of a quantized vector's largest magnitude, as in `trtstream.plugins.kv_cache`.
SMALLEST = tl.constexpr(kv_cache.SMALLEST)


@triton.jit
def load_halves(vectors, half, mask, HALF: tl.constexpr):
    """Both halves of the vectors that begin at ``vectors``; ``half`` counts the first half's dimensions."""
    return tl.load(vectors + half, mask=mask, other=0.0), tl.load(vectors + HALF + half, mask=mask, other=0.0)


@triton.jit
def rotate(first, second, cos, sin):
    """Both halves rotated, in float32."""
    first, second = first.to(tl.float32), second.to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def scale_of(vectors, FORMAT: tl.constexpr):
    """The scale [...] with which vectors [..., dim] are quantized to int8 or to 8-bit floats (e4m3)."""
    LARGEST: tl.constexpr = 127.0 if tl.int8 == FORMAT else 448.0
    return tl.maximum(tl.max(tl.abs(vectors.to(tl.float32)), axis=-1), SMALLEST) / LARGEST


@triton.jit
def quantize(vectors, scale, FORMAT: tl.constexpr):
    """As `trtstream.plugins.kv_cache.vectors_to_store` does; ``scale`` has the vectors' shape, or broadcasts to it."""
    scaled = vectors.to(tl.float32) / scale
    if tl.int8 == FORMAT:
        scaled = tl.floor(scaled + 0.5)
    return scaled.to(FORMAT)


@triton.jit
def dot_halves(first, second, key_first, key_second):
    """Scores float32 [queries, keys] of queries [queries, half] and keys [half, keys], which may be quantized."""
    scores = tl.dot(first, key_first.to(first.dtype), input_precision="ieee")
    return tl.dot(second, key_second.to(second.dtype), scores, input_precision="ieee")


@triton.jit
def accumulate(scores, values, peak, total, acc):
    """Online softmax: add a tile of base-2 scores [queries, keys] and values [keys, dim].

    Per query, ``peak`` is the highest score so far, ``total`` the sum of the weights 2 ** (score - peak), and ``acc``
    [queries, dim] the weighted sum of values, all float32.
    """
    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    shrink = tl.exp2(peak - new_peak)
    weights = tl.exp2(scores - new_peak[:, None])
    total = total * shrink + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
    return new_peak, total, acc


def half_block(head_dim: int) -> int:
    """The width of a tile that holds half a head; a dot product takes at least 16."""
    return max(16, triton.next_power_of_2(head_dim // 2))
