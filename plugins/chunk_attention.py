"""Streaming attention of a chunk of tokens (prefill, scoring) in torch: equivalent to a step for each token.

The chunk attends to the old cache and to itself and is written afterwards, so the ring needs no spare slots. The query
is rotated twice, to t for ring keys and to p(t) for sinks; no stored key is ever rotated again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trtstream.plugins.kv_cache import stored_vectors, vectors_to_store
from trtstream.plugins.positions import PositionEncoding, Rotation, rotate
from trtstream.plugins.window import Window

# So few that their scores stay in a cache: of 9 heads and 576 keys 1.3 MB. 32 are as fast, 128 and 256 slower.
BLOCK_QUERIES = 64


@dataclass(frozen=True)
class ChunkPlan:
    """The inputs that all layers share for a chunk of T tokens.

    The order of keys is: sinks (old, then the chunk's), old ring by age, rest of the chunk. So beside the sinks,
    queries that follow each other see one range of keys.
    """

    old_sinks: int
    new_sinks: int
    old_ring: torch.Tensor  # its slots, the oldest token's first
    rotations: tuple[Rotation, Rotation] | None  # at t and at p(t), each [T, head_dim / 2]; None with ALiBi
    bias: torch.Tensor  # [1 or heads, T, keys] float32, -inf where a query does not see a key
    blocks: list[tuple[slice, slice]]  # queries, and the keys beside sinks that any of them sees
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
    ring_tokens, by_age = (first - 1 - (newest - ring_slots) % window.ring).sort()
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
        old_ring=window.max_sinks + ring_slots[by_age],
        rotations=None if at_t is None or at_p is None else (at_t, at_p),
        bias=bias.masked_fill(~visible, -torch.inf),
        blocks=_blocks(visible, len(sink_tokens)),
        kept=kept - first,
        kept_slots=window.slots(kept),
    )


def _blocks(visible: torch.Tensor, sinks: int) -> list[tuple[slice, slice]]:
    """Queries that follow each other, and the range of keys from ``sinks`` on that they see: ``visible`` [T, keys]."""
    blocks = []
    for first in range(0, len(visible), BLOCK_QUERIES):
        queries = slice(first, min(first + BLOCK_QUERIES, len(visible)))
        seen = visible[queries, sinks:].any(dim=0).nonzero().flatten().tolist() or [0, -1]
        blocks.append((queries, slice(sinks + seen[0], sinks + seen[-1] + 1)))
    return blocks


def _used_ring_slots(window: Window, first: int, ring_first: int) -> int:
    """How many ring slots, from the first on, may hold a token before the chunk."""
    if first <= ring_first:
        return 0
    # A session rebuilt from its ids may begin anywhere in the ring, so its tokens wrap before they fill it.
    return window.ring if ring_first > window.sinks else min(first - window.sinks, window.ring)


def chunk_attention(qkv: torch.Tensor, cache: torch.Tensor, plan: ChunkPlan, num_heads: int) -> torch.Tensor:
    """Attend, then write the chunk into the cache. Scores and sums are float32.

    qkv [T, (heads + 2 * kv_heads) * head_dim] as projected; ``cache`` [2, kv_heads, slots, ...] is one session's
    keys and values of this layer, changed in place. Queries see the chunk as the cache stores it.
    Returns [T, heads * head_dim] in qkv's dtype.
    """
    cached = stored_vectors(cache)
    _, kv_heads, _, head_dim = cached.numbers.shape
    qkv = qkv.view(len(qkv), -1, head_dim).transpose(0, 1)  # [heads + 2 * kv_heads, T, head_dim]
    q, k, v = qkv.split((num_heads, kv_heads, kv_heads))
    q_at_t = q_at_p = q.float()
    if plan.rotations is not None:
        at_t, at_p = plan.rotations
        q_at_t, q_at_p = rotate(q_at_t, *at_t), rotate(q_at_p, *at_p)
        k = rotate(k.float(), *at_t)
    q_at_t, q_at_p = q_at_t * head_dim**-0.5, q_at_p * head_dim**-0.5
    chunk = vectors_to_store(torch.stack((k, v.to(k.dtype))), cache.dtype)  # [2, kv_heads, T]

    old_sinks, new_sinks = cached[:, :, : plan.old_sinks], chunk[:, :, : plan.new_sinks]
    recent = cached[:, :, plan.old_ring], chunk[:, :, plan.new_sinks :]
    keys, values = torch.cat([part.float() for part in (old_sinks, new_sinks, *recent)], dim=2)
    sinks = slice(0, plan.old_sinks + plan.new_sinks)
    out = q.new_empty(q.shape[1], num_heads, head_dim)

    for queries, others in plan.blocks:  # the queries of a head of keys are next to each other
        to_sinks = q_at_p[:, queries].reshape(kv_heads, -1, head_dim) @ keys[:, sinks].transpose(1, 2)
        to_others = q_at_t[:, queries].reshape(kv_heads, -1, head_dim) @ keys[:, others].transpose(1, 2)
        scores = torch.cat((to_sinks, to_others), dim=-1).view(num_heads, -1, to_sinks.shape[2] + to_others.shape[2])
        scores += torch.cat((plan.bias[:, queries, sinks], plan.bias[:, queries, others]), dim=-1)
        weights = torch.softmax(scores, dim=-1).view(kv_heads, -1, scores.shape[2])
        attended = weights[:, :, sinks] @ values[:, sinks] + weights[:, :, sinks.stop :] @ values[:, others]
        out[queries] = attended.view(num_heads, -1, head_dim).transpose(0, 1)

    cached[:, :, plan.kept_slots] = chunk[:, :, plan.kept]
    return out.flatten(1)
