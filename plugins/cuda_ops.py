"""Streaming attention as torch custom ops: one step of several sessions, one chunk of one session, and their rotations.

Importing this module registers ``torch.ops.trtstream.decode_attention``, ``chunk_attention`` and ``step_rotation``. On
CUDA tensors they launch the kernels of cuda_decode.py, cuda_prefill.py and cuda_rotation.py. On CPU tensors they
compute the definition in torch, so that everything above them runs without a GPU; under ``TRITON_INTERPRET=1`` they run
the same kernels in the Triton language's interpreter. No GPU has run them yet.
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch
import torch.nn.functional as F

from trtstream.plugins import chunk_attention as chunk
from trtstream.plugins import decode_plan
from trtstream.plugins.kv_cache import head_dim, stored_vectors, vectors_to_store
from trtstream.plugins.positions import PositionEncoding, rotate
from trtstream.plugins.window import Window


@torch.library.custom_op(
    "trtstream::decode_attention",
    mutates_args=("cache", "arrivals"),
    schema="(Tensor qkv, Tensor(a!) cache, Tensor rows, Tensor? rotation, Tensor? slopes, Tensor(b!) arrivals, "
    "int max_sinks) -> Tensor",
)
def decode_attention(
    qkv: torch.Tensor,
    cache: torch.Tensor,
    rows: torch.Tensor,
    rotation: torch.Tensor | None,
    slopes: torch.Tensor | None,
    arrivals: torch.Tensor,
    max_sinks: int,
) -> torch.Tensor:
    """Rotate, write and attend for one token of each of several sessions.

    qkv [B, (heads + 2 * kv_heads) * head_dim] as projected; ``cache`` [sessions, 2, kv_heads, W, ...], in qkv's dtype
    or quantized, which may be a view strided in its first dimension, is changed in place. ``rows`` [B, 6] (int64) are
    `decode_plan.Row`s of distinct sessions; one whose lane is -1 is padding: it writes nothing and gives zeros.
    ``rotation`` [B, 4, head_dim / 2] (float32) is `decode_plan.step_rotation`'s, or None; then ``slopes`` [heads]
    (float32) are ALiBi's, divided by sqrt(head_dim). ``arrivals`` are B * heads zeros or more (int32), which the kernel
    counts in and leaves as zeros; launches that may run at the same time need their own. Returns [B, heads * head_dim].
    """
    _check_contiguous(qkv=qkv, rows=rows, rotation=rotation, session=cache[0], arrivals=arrivals)
    if arrivals.numel() < len(qkv) * _num_heads(qkv, cache):
        raise ValueError(f"arrivals has {arrivals.numel()} numbers; one for each of the batch's heads is needed")
    if _runs_kernels(qkv):
        from trtstream.plugins.cuda_decode import launch_decode

        return launch_decode(qkv, cache, rows, rotation, slopes, arrivals, max_sinks)
    return _decode_attention(qkv, cache, rows, rotation, slopes, max_sinks)


@torch.library.custom_op(
    "trtstream::chunk_attention",
    mutates_args=("cache",),
    schema="(Tensor qkv, Tensor(a!) cache, Tensor row, Tensor? rotation, Tensor? slopes, int max_sinks) -> Tensor",
)
def chunk_attention(
    qkv: torch.Tensor,
    cache: torch.Tensor,
    row: torch.Tensor,
    rotation: torch.Tensor | None,
    slopes: torch.Tensor | None,
    max_sinks: int,
) -> torch.Tensor:
    """Attend and write for a chunk of one session: equivalent to a single step for each of its tokens.

    qkv [T, (heads + 2 * kv_heads) * head_dim] as projected; ``cache`` [sessions, 2, kv_heads, W, ...] as in
    `decode_attention`. ``row`` [5] (int64) is a `decode_plan.ChunkRow` of up to T tokens; the rest of qkv is padding,
    which writes nothing and gives anything. ``rotation`` [T, 4, head_dim / 2] and ``slopes`` [heads] are as in
    `decode_attention`. Returns [T, heads * head_dim].
    """
    _check_contiguous(qkv=qkv, row=row, rotation=rotation, session=cache[0])
    if _runs_kernels(qkv):
        from trtstream.plugins.cuda_prefill import launch_prefill

        return launch_prefill(qkv, cache, row, rotation, slopes, max_sinks)
    lane, first, length, sinks, ring_first = row.tolist()
    window = Window(sinks, max_sinks, cache.shape[3] - max_sinks)
    plan = chunk.plan_chunk(window, PositionEncoding(slopes=slopes), first, length, ring_first)
    if rotation is not None:
        cos_t, sin_t, cos_p, sin_p = rotation[:length].unbind(1)
        plan = replace(plan, rotations=((cos_t, sin_t), (cos_p, sin_p)))
    out = chunk.chunk_attention(qkv[:length], cache[lane], plan, _num_heads(qkv, cache))
    return F.pad(out, (0, 0, 0, len(qkv) - length))


@torch.library.custom_op("trtstream::step_rotation", mutates_args=())
def step_rotation(at: torch.Tensor, frequencies: torch.Tensor, scale: float) -> torch.Tensor:
    """`decode_plan.step_rotation` of a `PositionEncoding`'s ``frequencies`` [head_dim / 2] (float64) and ``scale``.

    ``at`` [N, 2] (int64) are t and p(t). Returns [N, 4, head_dim / 2] (float32).
    """
    _check_contiguous(at=at, frequencies=frequencies)
    if _runs_kernels(at):
        from trtstream.plugins.cuda_rotation import launch_rotation

        return launch_rotation(at, frequencies, scale)
    rotation = decode_plan.step_rotation(PositionEncoding(frequencies, scale), at)
    assert rotation is not None
    return rotation


@step_rotation.register_fake
def _(at: torch.Tensor, frequencies: torch.Tensor, scale: float) -> torch.Tensor:
    return at.new_empty(len(at), 4, len(frequencies), dtype=torch.float32)


@decode_attention.register_fake
@chunk_attention.register_fake
def _(qkv: torch.Tensor, cache: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return qkv.new_empty(len(qkv), _num_heads(qkv, cache) * head_dim(cache))


def _runs_kernels(x: torch.Tensor) -> bool:
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"


def _check_contiguous(**tensors: torch.Tensor | None) -> None:
    """Raise ValueError for a tensor that is not: the kernels compute addresses from sizes."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous: shape {tuple(tensor.shape)}, strides {tensor.stride()}")


def _num_heads(qkv: torch.Tensor, cache: torch.Tensor) -> int:
    return qkv.shape[1] // head_dim(cache) - 2 * cache.shape[-3]


def _decode_attention(
    qkv: torch.Tensor,
    cache: torch.Tensor,
    rows: torch.Tensor,
    rotation: torch.Tensor | None,
    slopes: torch.Tensor | None,
    max_sinks: int,
) -> torch.Tensor:
    """The definition: over all slots of a session at once, with invisible ones masked."""
    kv_heads, width, dim = cache.shape[2], cache.shape[3], head_dim(cache)
    heads, ring = _num_heads(qkv, cache), width - max_sinks
    q, k, v = qkv.view(len(qkv), -1, dim).split((heads, kv_heads, kv_heads), dim=1)
    q_at_t = q_at_p = q.float()
    if rotation is not None:
        cos_t, sin_t, cos_p, sin_p = rotation.unsqueeze(2).unbind(1)
        q_at_t, q_at_p = rotate(q_at_t, cos_t, sin_t), rotate(q_at_p, cos_p, sin_p)
        k = rotate(k.float(), cos_t, sin_t)

    real = rows[:, 0] >= 0
    cached, new = stored_vectors(cache), torch.stack((k, v.to(k.dtype)), dim=1)[real]
    cached[rows[real, 0], :, :, rows[real, 1]] = vectors_to_store(new, cache.dtype)
    visited = cached[rows[:, 0].clamp(min=0),].float()
    keys, values = visited.repeat_interleave(heads // kv_heads, dim=2).unbind(1)

    _, _, num_sinks, ring_count, newest, cache_position = rows.unsqueeze(2).unbind(1)  # each [B, 1]
    slots = torch.arange(width)
    is_sink = slots < num_sinks
    age = (newest - (slots - max_sinks)) % ring
    visible = is_sink | ((slots >= max_sinks) & (age < ring_count))
    scores = torch.where(
        is_sink.unsqueeze(1),
        torch.einsum("bhd,bhwd->bhw", q_at_p, keys),
        torch.einsum("bhd,bhwd->bhw", q_at_t, keys),
    )
    scores = scores * dim**-0.5
    if slopes is not None:
        scores = scores - slopes[:, None] * torch.where(is_sink, cache_position - slots, age).unsqueeze(1)
    weights = scores.masked_fill(~visible.unsqueeze(1), -torch.inf).softmax(dim=-1)
    weights = weights.masked_fill(~visible.unsqueeze(1), 0.0)
    # A slot that was never written may hold a NaN, and 0 * NaN is one.
    values = values.masked_fill(~visible[:, None, :, None], 0.0)
    out = torch.einsum("bhw,bhwd->bhd", weights, values).flatten(1).to(qkv.dtype)
    return out.masked_fill(~real.unsqueeze(1), 0.0)
