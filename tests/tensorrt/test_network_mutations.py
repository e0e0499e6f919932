"""The comparison of networks with the definition sees mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorrt_rtx as trt
import torch

from tests.engines import random_tokens, reference_logits
from tests.mutants import load_mutant
from tests.tensorrt import network_sessions
from tests.tensorrt.network_sessions import BUILD, RING, NetworkSessions, random_weights
from trtstream.build.tensorrt import attention, network

SINKS = 3  # below the caches' room for sinks
VISIBLE = 1e-2  # of the logits' standard deviation: a hundred times what test_network.py allows


def worst_error(folder: Path, variant: str) -> float:
    """Of a conversation of over four times C tokens, half in chunks and half in steps, next to another session."""
    weights, tokens = random_weights(folder, variant), random_tokens(4 * (SINKS + RING) + 3)
    sessions = NetworkSessions(trt, weights, BUILD, [1, SINKS])
    half = len(tokens) // 2
    chunks = sessions.prefill(1, tokens[:half], 6)
    steps = torch.cat([sessions.decode({0: token, 1: token})[1:] for token in tokens[half:]])
    expected = reference_logits(weights, tokens, SINKS, RING)
    return float((torch.cat((chunks, steps)) - expected).abs().max() / expected.std())


def mutate_attention(right: str, wrong: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Define networks with ``right`` replaced in the source of their attention."""
    mutant = load_mutant(attention, right, wrong, folder)
    monkeypatch.setattr(network, "plan_call", mutant.plan_call)
    monkeypatch.setattr(network, "streaming_attention", mutant.streaming_attention)


MUTATIONS = {
    "sinks at the ring's rotation": ("mask = mask + correction.pad(3, mask.shape[3])", "pass"),
    "the sinks' correction twice": ("correction.pad(3, mask.shape[3])", "correction.pad(3, mask.shape[3]) * 2"),
    "the sinks' correction added to the ring": (
        "keys.narrow(2, 0, plan.max_sinks)",
        "keys.narrow(2, 4, plan.max_sinks)",
    ),
    "the tokens written one slot off": (
        "new, plan.write_slots)",
        "new, (plan.write_slots > 4).where(plan.write_slots - 1, plan.write_slots))",
    ),
    "keys not rotated": ("k.cast(torch.float32).rotate(plan.key).cast(dtype)", "k"),
    "keys rotated to p(t)": ("key, query = (cos_t, sin_t)", "key, query = (cos_p, sin_p)"),
    "one ring token too few": ("(distance < build.ring)", "(distance < build.ring - 1)"),
    "one ring token too many": ("(distance < build.ring)", "(distance < build.ring + 1)"),
    "the token itself not seen": ("(distance > -1)", "(distance > 0)"),
    "the next token seen": ("(distance > -1)", "(distance > -2)"),
    "empty slots seen": (" & (age < stored)", ""),
    "one stored token not seen": ("(age < stored)", "(age < stored - 1)"),
    "the ring one slot off": ("behind = newest - ring_slot", "behind = newest - ring_slot - 1"),
    "one sink too few": ("(sink < sinks)", "(sink < sinks - 1)"),
    "one sink too many": ("(sink < sinks)", "(sink < sinks + 1)"),
    "later sinks seen": ("(sink_distance > -1)", "(sink_distance > -9)"),
    "a sink not seen by itself": ("(sink_distance > -1)", "(sink_distance > 0)"),
    "scores not scaled": ("scale = model.head_dim**-0.5", "scale = 1.0"),
    "keys and values exchanged": (
        "layers.attention(query.cast(dtype), keys, values",
        "layers.attention(query.cast(dtype), values, keys",
    ),
    "query heads dealt out to the wrong key-value heads": (
        "moved = q.rotate(plan.query_to_sinks).reshape(0, kv_heads, -1, head_dim)",
        "moved = q.rotate(plan.query_to_sinks).transpose(0, 2, 1, 3).reshape(0, kv_heads, -1, head_dim)",
    ),
    "heads left apart": ("attended.transpose(0, 2, 1, 3).reshape", "attended.reshape"),
    "the last slot for the ring": ("[*range(ring_slots), -ring_slots]", "[*range(1, ring_slots + 1), 0]"),
}
"""Text of the source, and each mutation's replacement for it."""


@pytest.mark.parametrize("variant", ["llama-gqa", "falcon-rw"])
def test_the_comparison_is_exact_without_a_mutation(variant: str, tmp_path: Path) -> None:
    assert worst_error(tmp_path, variant) < VISIBLE / 100


@pytest.mark.quick("one sink too many", "scores not scaled", "the last slot*")
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_a_mutated_attention(mutation: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate_attention(*mutation, tmp_path, monkeypatch)
    assert not worst_error(tmp_path, "llama-gqa") < VISIBLE


ALIBI = {
    "a sink's distance off by one": ("sink_distance = p - sink", "sink_distance = p - sink + 1"),
    "a ring token's distance off by one": ("distance = age - later", "distance = age - later + 1"),
    "a ring token's distance from the chunk's end": ("[sink_distance, distance]", "[sink_distance, distance + later]"),
    "a bias of the wrong sign": ("-positions.slopes", "positions.slopes"),
    "scores not scaled": ("query = q * head_dim**-0.5", "query = q"),
}


@pytest.mark.quick("a ring token's distance off by one")
@pytest.mark.parametrize("mutation", ALIBI.values(), ids=ALIBI)
def test_a_mutated_attention_with_alibi(
    mutation: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate_attention(*mutation, tmp_path, monkeypatch)
    assert not worst_error(tmp_path, "falcon-rw") < VISIBLE


HEADS = {
    "heads not normalized": ("qwen3", "if not model.qk_norm:", "if True:"),
    "keys normalized as queries": (
        "qwen3",
        'self.normalize(k, f"{layer}.k_norm")',
        'self.normalize(k, f"{layer}.q_norm")',
    ),
    "values not clipped": ("mpt-7b", "qkv = qkv.clamp(model.clip_qkv)", "pass"),
}


@pytest.mark.quick("heads*")
@pytest.mark.parametrize("mutation", HEADS.values(), ids=HEADS)
def test_mutated_heads(mutation: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant, right, wrong = mutation
    mutant = load_mutant(network, right, wrong, tmp_path)
    monkeypatch.setattr(network_sessions, "define_network", mutant.define_network)
    assert not worst_error(tmp_path, variant) < VISIBLE
