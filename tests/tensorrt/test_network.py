"""TensorRT's networks, in the interpreter, against the definition of streaming attention: every family variant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tensorrt_rtx as trt
import torch

from tests.checkpoints import VARIANTS
from tests.engines import build_variant, load_on_cpu, random_tokens, reference_logits
from tests.tensorrt.network_sessions import (
    BUILD,
    MAX_SINKS,
    RING,
    NetworkSessions,
    Tensors,
    random_weights,
)
from trtstream.build.tensorrt.quantize import dequantize, quantize
from trtstream.errors import TrtstreamError
from trtstream.plugins.positions import PositionEncoding, rotate
from trtstream.plugins.reference import streaming_attention
from trtstream.runtime.decoder import collect_weights, decode_layers

SINKS = (0, 1, MAX_SINKS)
TOLERANCE = 1e-4  # of the logits' standard deviation
PROJECTIONS = ("qkv", "attention_output", "gate_up", "up", "down")


@pytest.fixture(scope="module", params=VARIANTS)
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    return random_weights(tmp_path_factory.mktemp(request.param), request.param)


def conversation(sinks: int) -> list[int]:
    """Tokens to past four times what a session sees."""
    return random_tokens(4 * (sinks + RING) + 3, seed=sinks)


def assert_equal(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert (found - expected).abs().max() < tolerance * expected.std()


@pytest.mark.quick("llama-gqa", "falcon-rw")
def test_decode_of_sessions_that_sit_steps_out(weights: Tensors) -> None:
    sessions = NetworkSessions(trt, weights, BUILD, SINKS)
    tokens = [conversation(sinks) for sinks in SINKS]
    found = [[] for _ in SINKS]
    for step in range(2 * max(map(len, tokens))):
        fed = [s for s in range(len(SINKS)) if len(found[s]) < len(tokens[s]) and (step + s) % (s + 2)]
        if fed:
            for s, logits in zip(fed, sessions.decode({s: tokens[s][len(found[s])] for s in fed}), strict=True):
                found[s].append(logits)
    for session, sinks in enumerate(SINKS):
        assert_equal(torch.stack(found[session]), reference_logits(weights, tokens[session], sinks, RING))


@pytest.mark.quick("llama-gqa", "llama-bias", "qwen3", "falcon-rw", "falcon-40b", "mpt-7b")
def test_prefill_in_chunks(weights: Tensors) -> None:
    """As long as a call takes, and shorter. Decode continues after it, in the same caches."""
    sessions = NetworkSessions(trt, weights, BUILD, SINKS)
    for session, (sinks, size) in enumerate(zip(SINKS, (5, 6, 5), strict=True)):
        tokens = conversation(sinks)
        chunks = sessions.prefill(session, tokens[:-2], size)
        steps = [sessions.decode({session: token}) for token in tokens[-2:]]
        assert_equal(torch.cat((chunks, *steps)), reference_logits(weights, tokens, sinks, RING))


def reference_caches(weights: Tensors, tokens: list[int], sinks: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each layer's keys, rotated at t, and values [T, kv_heads, head_dim] of all tokens."""
    model, positions = weights.model, PositionEncoding.of(weights.model)
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    caches = []

    def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.view(len(qkv), -1, model.head_dim).split((heads, kv_heads, kv_heads), dim=1)
        rotated = k
        if positions.slopes is None:
            rotated = rotate(k, *(x[:, None] for x in positions.rotation(torch.arange(len(k)))))
        caches.append((rotated, v))
        rotations = positions.frequencies, positions.scale
        return streaming_attention(q, k, v, sinks, RING, *rotations, slopes=positions.slopes).flatten(1)

    decoder = collect_weights(model, set(weights.tensor_names()), weights.tensor, pack=False)
    decode_layers(decoder.embedding[torch.tensor(tokens)], decoder, model, attention)
    return caches


@pytest.mark.quick("*-11")
@pytest.mark.parametrize("length", [3, 11, 50])
@pytest.mark.parametrize("variant", ["llama-gqa", "falcon-rw"])
def test_keys_and_values_in_their_slots(variant: str, length: int, tmp_path: Path) -> None:
    weights, tokens, sinks = random_weights(tmp_path, variant), random_tokens(length), 2
    sessions = NetworkSessions(trt, weights, BUILD, [sinks, sinks, 0])
    before = {name: cache.clone() for name, cache in sessions.caches.items()}
    sessions.prefill(0, tokens, 6)
    for token in tokens:
        sessions.decode({1: token})
    window = sessions.windows[0]
    kept = window.kept(0, length)
    slots = window.slots(kept)
    untouched = [slot for slot in range(window.max_sinks + window.ring_slots) if slot not in slots.tolist()]
    for layer, pair in enumerate(reference_caches(weights, tokens, sinks)):
        for name, expected in zip((f"keys.{layer}", f"values.{layer}"), pair, strict=True):
            cache = sessions.caches[name]
            for session in (0, 1):
                assert_equal(cache[session, :, slots].transpose(0, 1), expected[kept])
            assert torch.equal(cache[:, :, untouched], before[name][:, :, untouched])
            assert torch.equal(cache[2, :, :-1], before[name][2, :, :-1])  # idle: wrote to its last slot only


@pytest.mark.parametrize("variant", ["llama-rope-yarn", "falcon-rw"])
def test_a_session_at_position_four_million(variant: str, tmp_path: Path) -> None:
    start, tokens = 4_000_000, random_tokens(MAX_SINKS + 40)
    weights = random_weights(tmp_path, variant)
    numbers = torch.cat((torch.arange(MAX_SINKS), torch.arange(start, start + 40)))
    expected = reference_logits(weights, tokens, MAX_SINKS, RING, dtype=torch.float64, t=numbers)
    sessions = NetworkSessions(trt, weights, BUILD, [MAX_SINKS])
    sessions.prefill(0, tokens[:MAX_SINKS], 6)
    sessions.t, sessions.ring_first = [start], [start]
    chunks = sessions.prefill(0, tokens[MAX_SINKS:-10], 6)
    steps = [sessions.decode({0: token}) for token in tokens[-10:]]
    assert_equal(torch.cat((chunks, *steps)), expected[MAX_SINKS:])


@pytest.mark.quick("llama-gqa-float16", "falcon-rw-bfloat16")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("variant", ["llama-gqa", "falcon-40b", "falcon-rw"])
def test_16_bits(variant: str, dtype: str, tmp_path: Path) -> None:
    """As close to the exact logits of the same rounded weights as the definition of the cuda target is."""
    tokens = conversation(MAX_SINKS)
    checkpoint, engine = build_variant(
        tmp_path, variant, "cuda", max_batch_size=1, max_attention_window=MAX_SINKS + RING, dtype=dtype
    )
    rounded = {name: checkpoint.tensor(name).to(getattr(torch, dtype)) for name in checkpoint.tensor_names()}
    weights = Tensors(checkpoint.model, rounded)
    exact = reference_logits(weights, tokens, MAX_SINKS, RING, dtype=torch.float64)
    cuda = load_on_cpu(engine)
    cuda.reset(0, MAX_SINKS)
    error = (torch.cat([cuda.decode([0], [token]) for token in tokens]) - exact).square().mean().sqrt()
    sessions = NetworkSessions(trt, weights, replace(BUILD, dtype=dtype), [MAX_SINKS, MAX_SINKS])
    chunks = sessions.prefill(0, tokens, 6)
    steps = torch.cat([sessions.decode({1: token}) for token in tokens])
    for found in (chunks, steps):
        assert (found - exact).square().mean().sqrt() < 1.5 * error


@pytest.mark.quick("llama-bias-int4", "falcon-11b-int8")
@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("variant", ["llama-bias", "falcon-11b"])
def test_quantized_projections(variant: str, quantization: str, tmp_path: Path) -> None:
    weights, tokens = random_weights(tmp_path, variant), conversation(MAX_SINKS)
    stored, dequantized = dict(weights.tensors), dict(weights.tensors)
    for name, weight in weights.tensors.items():
        projection = name.removesuffix(".weight")
        if name != projection and projection.rpartition(".")[2] in PROJECTIONS:
            values, scales = quantize(weight, quantization, torch.float32)
            stored[name], stored[f"{projection}.scales"] = values, scales
            dequantized[name] = dequantize(values, scales)
            half_a_scale = scales.repeat_interleave(weight.numel() // scales.numel()).view_as(weight) / 2
            assert ((dequantized[name] - weight).abs() <= 1.001 * half_a_scale).all()
    sessions = NetworkSessions(trt, Tensors(weights.model, stored), BUILD, [MAX_SINKS])
    expected = reference_logits(Tensors(weights.model, dequantized), tokens, MAX_SINKS, RING)
    assert_equal(sessions.prefill(0, tokens, 6), expected)
    plain = reference_logits(weights, tokens, MAX_SINKS, RING)
    assert (expected - plain).abs().max() > TOLERANCE * expected.std()


@pytest.mark.builder
@pytest.mark.parametrize(
    ("variant", "overrides"), [("llama-gqa", {"head_dim": 64}), ("falcon-rw", {"num_attention_heads": 8})]
)
def test_the_builder_has_fused_attention_for_it(variant: str, overrides: dict[str, int], tmp_path: Path) -> None:
    weights = random_weights(tmp_path, variant, torch.float16, **overrides)
    sessions = NetworkSessions(trt, weights, replace(BUILD, dtype="float16"), SINKS)
    for index in range(sessions.network.num_layers):
        layer = sessions.network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = False  # then no other kernel is allowed
    assert sessions.builds()


def test_a_layer_that_tensorrt_refuses(tmp_path: Path) -> None:
    weights = random_weights(tmp_path, "llama-gqa")
    wrong = Tensors(weights.model, weights.tensors | {"layers.1.down.weight": torch.zeros(64, 95)})
    with pytest.raises(TrtstreamError, match=r"matrix_multiply layer of layers\.1\.down: .*95"):
        NetworkSessions(trt, wrong, BUILD, SINKS)
