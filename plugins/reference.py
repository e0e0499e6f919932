"""The definition of streaming attention, in plain torch, over a whole session at once.

Tokens t = 0, 1, 2, ... A session always keeps its first S tokens (attention sinks), and a ring of the R most recent
others, so the query at t sees at most C = S + R tokens. Positions are those inside the cache: p(t) = min(t, C - 1) for
the query, j for sink j, p(t) - (t - i) for ring token i. A ring token's distance is therefore the true one, t - i; a
sink's is p(t) - j and stops growing. Efficient Streaming Language Models with Attention Sinks (Xiao et al.,
arXiv:2309.17453), section 3.2.

Every other implementation is tested against this one.
"""

from __future__ import annotations

import torch

from trtstream.plugins.positions import alibi_slopes, rotate, rotation


def visible(t: torch.Tensor, sinks: int, ring: int) -> torch.Tensor:
    """Which of the tokens numbered t [T] each of them sees: bool [query, key]."""
    query, key = t.unsqueeze(1), t.unsqueeze(0)
    return (key <= query) & ((key < sinks) | (key > query - ring))


def cache_position(t: torch.Tensor, sinks: int, ring: int) -> torch.Tensor:
    """p(t), the query's position inside the cache."""
    return t.clamp(max=sinks + ring - 1)


def streaming_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: int,
    ring: int,
    frequencies: torch.Tensor | None = None,
    rotation_scale: float = 1.0,
    t: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of every token of a session to the tokens that it sees.

    q [T, heads, head_dim] and k, v [T, kv_heads, head_dim] as projected, not rotated, in any float dtype;
    ``frequencies`` [head_dim / 2] (float64) rotate them, and None means ALiBi, of which ``slopes`` [heads] are what a
    token of distance takes off a scaled score (by default Falcon's). ``t`` [T] numbers the tokens, by default
    0, 1, 2, ...; a session of which only the sinks and recent tokens are known has a gap there. Returns [T, heads,
    head_dim].
    """
    num_heads, head_dim = q.shape[1:]
    k = k.repeat_interleave(num_heads // k.shape[1], dim=1)
    v = v.repeat_interleave(num_heads // v.shape[1], dim=1)
    t = torch.arange(len(q)) if t is None else t
    p = cache_position(t, sinks, ring)
    is_sink = t < sinks

    if frequencies is not None:
        q_at_t, q_at_p, k = (
            rotate(x, *(angle.unsqueeze(1) for angle in rotation(at, frequencies, rotation_scale)))
            for x, at in ((q, t), (q, p), (k, t))
        )
        to_ring = torch.einsum("qhd,khd->hqk", q_at_t, k)
        to_sinks = torch.einsum("qhd,khd->hqk", q_at_p, k)
        scores = torch.where(is_sink, to_sinks, to_ring)
    else:
        distance = torch.where(is_sink, p.unsqueeze(1) - t, t.unsqueeze(1) - t)
        slopes = alibi_slopes(num_heads) * head_dim**-0.5 if slopes is None else slopes
        # So that everything is scaled below.
        bias = -slopes.to(q.dtype)[:, None, None] * distance * head_dim**0.5
        scores = torch.einsum("qhd,khd->hqk", q, k) + bias

    scores = (scores * head_dim**-0.5).masked_fill(~visible(t, sinks, ring), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v)
