"""Launches counted and compiled without running them, and the step that the roofline predicts from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.gpu import launches
from benchmarks.gpu.bench import FULL, TINY
from benchmarks.gpu.launches import Engine
from benchmarks.gpu.roofline import ATTAINED, GPUS, STREAMED, beside_measured, decode_step, predictions
from benchmarks.models import FALCON_7B, LLAMA_2_7B, TINY_LLAMA
from trtstream.settings import BuildConfig, ModelConfig

H100 = GPUS["H100 SXM"]


def build(**others: Any) -> BuildConfig:
    return BuildConfig(max_attention_window=1024, dtype="float16", **others)


@pytest.mark.parametrize("model", [LLAMA_2_7B, FALCON_7B], ids=["Llama-2-7B", "Falcon-7B"])
def test_kernels_per_layer_are_those_counted_by_hand(model: ModelConfig) -> None:
    """Up to 8 tokens: 4 products and attention; 4 around the layers."""
    for batch in (1, 8):
        step = decode_step(Engine(model, build()), batch, H100.multiprocessors)
        assert (step.kernels_per_layer, step.kernels) == (5, 32 * 5 + 4)


def test_more_tokens_are_multiplied_by_torch() -> None:
    """4 products, 2 norms, 2 additions, silu, its product, and attention; 5 around the layers."""
    step = decode_step(Engine(LLAMA_2_7B, build()), 64, H100.multiprocessors)
    assert (step.kernels_per_layer, step.kernels) == (11, 32 * 11 + 5)


def test_a_step_of_all_layers_launches_what_two_layers_predict() -> None:
    engine = Engine(replace(LLAMA_2_7B, num_hidden_layers=5), build(max_batch_size=4))
    found = launches.step_kernels(engine, 4, H100.multiprocessors)
    assert sum(found.values()) == decode_step(engine, 4, H100.multiprocessors).kernels
    assert (found["decode_kernel"], found["matvec_kernel"]) == (5, 5 * 4 + 1)


def test_a_quantized_layer_needs_no_linear() -> None:
    engine = Engine(replace(LLAMA_2_7B, num_hidden_layers=2), build(max_batch_size=64), "int4")
    found = launches.step_kernels(engine, 64, H100.multiprocessors)
    assert (found["int4_kernel"], found["aten.linear"]) == (2 * 4, 1)
    assert found["sum_kernel"] == 2 * 2, "two of a layer's products have too few rows for the GPU"


def test_the_bytes_of_a_step_are_those_counted_by_hand() -> None:
    """Llama-2-7B's weights without the embedding, and the keys and values of a full window."""
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
    weights = 32 * layer + 4096 + 32000 * 4096 + 4096
    assert decode_step(Engine(LLAMA_2_7B, build()), 1, 132).num_bytes == 2 * (weights + 32 * 2 * 4096 * 1024)


def test_the_predicted_step() -> None:
    """What was estimated for an H100 kernel by kernel: 5.3 ms, or 5.6 to 6.4 by torch's operators."""
    step = decode_step(Engine(LLAMA_2_7B, build()), 1, H100.multiprocessors)
    bandwidth = H100.bandwidth * ATTAINED
    assert step.floor_ms(bandwidth) == pytest.approx(4.56, abs=0.01)
    assert 5.1 < step.predicted_ms(bandwidth) < 5.4
    assert 5.6 < replace(step, kernels=32 * 12 + 11, streamed=STREAMED["torch"]).predicted_ms(bandwidth) < 6.4


def test_a_measurement_stands_beside_its_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"model": "tiny Llama", "window": 16, "batch": 1}
    results = {"parts": {"decode": {"cases": [{"labels": labels, "rows": [{"target": "cuda", "ms": 1.0}]}]}}}
    monkeypatch.setattr("benchmarks.gpu.roofline.FULL", TINY)
    first, second, *_ = beside_measured(predictions("L4"), results)
    assert first["to_predicted"] == 1.0 / first["predicted_ms"]
    assert "measured_ms" not in second
    assert FULL is not TINY


def test_every_kernel_of_an_engine_is_launched_beforehand() -> None:
    seen: Counter[str] = Counter()
    for quantization, kv_dtype in ((None, None), ("int8", "int8"), ("int4", "fp8")):
        engine = Engine(TINY_LLAMA, build(max_batch_size=3, max_num_tokens=16, kv_dtype=kv_dtype), quantization)
        launches.launch_all(engine, lambda kernel, *_, **__: seen.update([kernel.__name__]), H100.multiprocessors)
    kernels = {
        "matvec_kernel",
        "rotation_kernel",
        "decode_kernel",
        "prefill_kernel",
        "rotate_keys_kernel",
        "quantize_kernel",
        "write_kernel",
    }
    assert set(seen) == kernels | {"int8_kernel", "int4_kernel"}


def test_engines_that_differ_in_batch_and_chunk_are_compiled_once() -> None:
    engines = [Engine(TINY_LLAMA, build(max_batch_size=batch)) for batch in (1, 64, 8)]
    engines.append(Engine(TINY_LLAMA, build(max_num_tokens=2048)))
    engines.append(engines[0]._replace(quantization="int8"))
    assert launches.distinct(engines) == [
        Engine(TINY_LLAMA, build(max_batch_size=64, max_num_tokens=2048)),
        engines[-1],
    ]


def fails(engine: Engine) -> list[str]:
    return [f"no {engine.quantization}"]


@pytest.mark.process
@pytest.mark.slow
def test_what_does_not_compile_is_said() -> None:
    engines = [Engine(TINY_LLAMA, build(), quantization) for quantization in ("int8", "int4")]
    assert set(launches.compile_all(engines, fails)) == {"no int8", "no int4"}
