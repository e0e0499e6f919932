"""The definition itself against an independent one: re-rotate the whole cache at every step, as the paper does."""

from __future__ import annotations

import math

import pytest
import torch

from trtstream.plugins.positions import PositionEncoding, inverse_frequencies
from trtstream.plugins.reference import streaming_attention
from trtstream.settings import RopeConfig

HEADS, KV_HEADS, HEAD_DIM, RING, TOKENS = 4, 2, 16, 20, 100
FREQUENCIES = 10000.0 ** -(torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)


def qkv(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(TOKENS, heads, HEAD_DIM, generator=generator, dtype=torch.float64)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )


def turn(x: torch.Tensor, position: float) -> torch.Tensor:
    """Rotate one vector as complex numbers: pairs (i, i + d / 2) times exp(i * position * frequency)."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(
        torch.ones(half, dtype=x.dtype), position * FREQUENCIES
    )
    return torch.cat((turned.real, turned.imag), dim=-1)


def rerotate_whole_cache(
    q, k, v, sinks: int, ring: int, slopes: list[float] | None, sink_shift: int = 0
) -> torch.Tensor:
    """Keep a list of unrotated keys, evict from its middle, and give every key its place in the list at every step."""
    kept: list[int] = []
    outputs = []
    for t in range(len(q)):
        kept.append(t)
        if len(kept) > sinks + ring:
            del kept[sinks]
        out = torch.empty(HEADS, HEAD_DIM, dtype=q.dtype)
        for head in range(HEADS):
            scores = []
            for place, token in enumerate(kept):
                place = place + sink_shift if token < sinks else place
                key, query = k[token, head * KV_HEADS // HEADS], q[t, head]
                if slopes is None:
                    score = turn(query, len(kept) - 1) @ turn(key, place)
                else:
                    score = query @ key - slopes[head] * (len(kept) - 1 - place)
                scores.append(score / math.sqrt(HEAD_DIM))
            weights = torch.stack(scores).softmax(dim=0)
            out[head] = sum(w * v[token, head * KV_HEADS // HEADS] for w, token in zip(weights, kept, strict=True))
        outputs.append(out)
    return torch.stack(outputs)


@pytest.mark.quick("*-4")
@pytest.mark.parametrize("sinks", [0, 1, 4, 7])
@pytest.mark.parametrize("alibi", [False, True])
def test_equals_rerotating_the_whole_cache(sinks: int, alibi: bool) -> None:
    slopes = [2.0 ** -(2 * i) for i in range(1, HEADS + 1)] if alibi else None
    expected = rerotate_whole_cache(*qkv(), sinks, RING, slopes)
    found = streaming_attention(*qkv(), sinks, RING, None if alibi else FREQUENCIES)
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("alibi", [False, True])
def test_the_comparison_sees_a_sink_off_by_one(alibi: bool) -> None:
    slopes = [2.0 ** -(2 * i) for i in range(1, HEADS + 1)] if alibi else None
    wrong = rerotate_whole_cache(*qkv(), 4, RING, slopes, sink_shift=1)
    found = streaming_attention(*qkv(), 4, RING, None if alibi else FREQUENCIES)
    assert (found - wrong).abs().max() > 1e-3


def test_within_the_window_it_is_causal_attention() -> None:
    q, k, v = (x[: 4 + RING] for x in qkv())
    t = torch.arange(len(q))
    rotated_q, rotated_k = (torch.stack([turn(x[i], i) for i in t]) for x in (q, k))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (rotated_q, rotated_k, v)), is_causal=True, enable_gqa=True
    )[0].transpose(0, 1)
    assert (streaming_attention(q, k, v, 4, RING, FREQUENCIES) - expected).abs().max() < 1e-12


def test_pairs_that_do_not_rotate_are_not_scaled() -> None:
    rope = RopeConfig("yarn", factor=4.0, original_max_position_embeddings=1024, rotary_dim=4)
    frequencies, scale = inverse_frequencies(rope, 16)
    cos, sin = PositionEncoding(frequencies, scale).rotation(torch.tensor([0, 7, 4_000_000]))
    assert torch.equal(cos[0, :2], torch.full((2,), scale))
    assert scale > 1
    assert torch.equal(cos[:, 2:], torch.ones(3, 6))
    assert torch.equal(sin[:, 2:], torch.zeros(3, 6))
