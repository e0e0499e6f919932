"""Streaming attention of a chunk of tokens (prefill, scoring) in torch: equivalent to a step for each token.

The chunk attends to the old cache and to itself and is written afterwards, so the ring needs no spare slots. The query
is rotated twice, to t for ring keys and to p(t) for sinks; no stored key is ever rotated again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trtstream.plugins.positions import PositionEncoding, Rotation, rotate
from trtstream.plugins.window import Window


@dataclass(frozen=True)
class ChunkPlan:
    """The inputs that all layers share for a chunk of T tokens.

    The order of keys is: sinks (old, then the chunk's), old ring, rest of the chunk.
    """

    old_sinks: int
    new_sinks: int
    old_ring: slice
    rotations: tuple[Rotation, Rotation] | None  # at t and at p(t), each [T, head_dim / 2]; None with ALiBi
    bias: torch.Tensor  # [1 or heads, T, keys] float32, -inf where a query does not see a key
    kept: torch.Tensor  # chunk-relative indices of the tokens that stay in the cache
    kept_slots: torch.Tensor  # their slots


def plan_chunk(window: Window, positions: PositionEncoding, first: int, length: int, ring_first: int) -> ChunkPlan:
    """Plan the tokens [first, first + length) of a session whose ring begins with token ``ring_first`` (>= S)."""
    t = torch.arange(first, first + length)
    p = t.clamp(max=window.capacity - 1)
    old_sinks = min(window.sinks, first)
    new_sinks = min(max(window.sinks - first, 0), length)

    ring_slots = torch.arange(_used_ring_slots(window, first, ring_first))
    newest = (first - 1 - window.sinks) % window.ring
    ring_tokens = first - 1 - (newest - ring_slots) % window.ring
    sink_tokens = torch.arange(old_sinks + new_sinks)
    keys = torch.cat((sink_tokens, ring_tokens, t[new_sinks:]))
    is_sink = torch.arange(len(keys)) < len(sink_tokens)

    query = t.unsqueeze(1)
    visible = (keys <= query) & (is_sink | ((keys > query - window.ring) & (keys >= ring_first)))
    bias = torch.zeros(1, *visible.shape)
    if positions.slopes is not None:
        distance = torch.where(is_sink, p.unsqueeze(1), query) - keys
        bias = -positions.slopes[:, None, None] * distance
    kept = window.kept(first, first + length)
    at_t, at_p = positions.rotation(t), positions.rotation(p)
    return ChunkPlan(
        old_sinks=old_sinks,
        new_sinks=new_sinks,
        old_ring=slice(window.max_sinks, window.max_sinks + len(ring_slots)),
        rotations=None if at_t is None or at_p is None else (at_t, at_p),
        bias=bias.masked_fill(~visible, -torch.inf),
        kept=kept - first,
        kept_slots=window.slots(kept),
    )


def _used_ring_slots(window: Window, first: int, ring_first: int) -> int:
    """How many ring slots, from the first on, may hold a token before the chunk."""
    if first <= ring_first:
        return 0
    # A session rebuilt from its ids may begin anywhere in the ring, so its tokens wrap before they fill it.
    return window.ring if ring_first > window.sinks else min(first - window.sinks, window.ring)


def chunk_attention(qkv: torch.Tensor, cache: torch.Tensor, plan: ChunkPlan, num_heads: int) -> torch.Tensor:
    """Attend, then write the chunk into the cache. Scores and sums are float32.

    qkv [T, (heads + 2 * kv_heads) * head_dim] as projected; ``cache`` [2, kv_heads, slots, head_dim] is one session's
    keys and values of this layer, changed in place. Returns [T, heads * head_dim] in qkv's dtype.
    """
    _, kv_heads, _, head_dim = cache.shape
    qkv = qkv.view(len(qkv), -1, head_dim).transpose(0, 1)  # [heads + 2 * kv_heads, T, head_dim]
    q, k, v = qkv.split((num_heads, kv_heads, kv_heads))
    q_at_t = q_at_p = q.float()
    if plan.rotations is not None:
        at_t, at_p = plan.rotations
        q_at_t, q_at_p = rotate(q_at_t, *at_t), rotate(q_at_p, *at_p)
        k = rotate(k.float(), *at_t).to(k.dtype)
    chunk = torch.stack((k, v))  # [2, kv_heads, T, head_dim]

    old_sinks, new_sinks = cache[:, :, : plan.old_sinks], chunk[:, :, : plan.new_sinks]
    recent = cache[:, :, plan.old_ring], chunk[:, :, plan.new_sinks :]
    keys, values = torch.cat((old_sinks, new_sinks, *recent), dim=2).float()
    num_sinks = plan.old_sinks + plan.new_sinks

    def grouped(query: torch.Tensor) -> torch.Tensor:  # scaled, the queries of a key-value head next to each other
        return (query * head_dim**-0.5).reshape(kv_heads, -1, head_dim)

    # The few sink columns are computed twice: cheaper than joining two products of different queries.
    scores = grouped(q_at_t) @ keys.transpose(1, 2)
    scores[:, :, :num_sinks] = grouped(q_at_p) @ keys[:, :num_sinks].transpose(1, 2)
    weights = scores.view(num_heads, q.shape[1], -1).add_(plan.bias).softmax(dim=-1)
    out = weights.view(kv_heads, -1, keys.shape[1]) @ values

    cache[:, :, plan.kept_slots] = chunk[:, :, plan.kept]
    return out.view(num_heads, -1, head_dim).transpose(0, 1).reshape(q.shape[1], -1).to(qkv.dtype)
