"""benchmarks.gpu without a GPU: all of its parts on the CPU with tiny models, and the methods it compares with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx
import torch
from packaging.requirements import Requirement

from benchmarks import baselines, models
from benchmarks.gpu import __main__ as script
from benchmarks.gpu import engines, measurements, parts, worker
from benchmarks.gpu.bench import TINY, WORKSPACE, Bench, Case
from benchmarks.gpu.correctness import engine_checks
from benchmarks.gpu.report import markdown
from benchmarks.gpu.results import Results, Row, rows_of
from benchmarks.markdown import table
from tests.tensorrt.interpreted_engine import interpreted_engine
from trtstream.plugins.kv_cache import kv_bytes_per_session
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.settings import BuildConfig, ModelConfig

ROOT = Path(__file__).parent.parent.parent

CPU = torch.device("cpu")
COLUMNS = {
    "environment": {"cpu", "torch", "trtstream", "date"},
    "correctness": {"check", "of", "window", "dtype", "off_by", "tolerance", "ok"},
    "bandwidth": {"copy_gb_per_s", "read_gb_per_s"},
    "decode": {
        "model",
        "window",
        "batch",
        "floor_ms",
        "predicted_ms",
        "ms",
        "end_to_end_ms",
        "to_floor",
        "tokens_per_s",
    },
    "prefill": {"model", "window", "chunk", "tokens", "ms", "tokens_per_s"},
    "methods": {"model", "window", "method", "ms", "times_ours"},
    "flatness": {"model", "window", "young_ms", "old_ms", "old_to_young", "goal", "met"},
    "compilation": {"step", "layers", "window", "ms", "times_ours", "logits_off_by_sigmas"},
    "quantization": {"model", "weights", "window", "ms", "to_float32", "read_gb", "floor_ms", "to_floor"},
    "kv_dtypes": {"model", "kv_dtype", "window", "batch", "ms", "to_float32", "read_gb", "floor_ms", "to_floor"},
    "products": {"projection", "rows", "columns", "weights", "by", "ms", "times_ours", "off_by_sigmas"},
    "attention": {"model", "window", "batch", "floor_ms", "ms", "to_floor", "us_per_layer"},
    "tensorrt": {"target", "runs", "note"},
    "tensorrt_decode": {"target", "runs", "note"},
    "tensorrt_prefill": {"target", "runs", "note"},
}


def parts_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["parts"]


def measure(part: str, folder: Path) -> Results:
    """The part's results, measured in this process."""
    results, bench = Results(folder / "results.json", "CPU, tiny sizes"), Bench(CPU, TINY)
    results.begin(part, parts.sources(part))
    assert worker.measure(part, bench, results, 1000)
    return results


def rows(cases: Iterator[Case]) -> Iterator[Row]:
    return (case.labels | row for case in cases for row in case.run())


@pytest.mark.process
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_what_is_missing() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == script.NO_GPU
    assert done.stdout == ""
    assert done.stderr.startswith("benchmarks.gpu needs an NVIDIA GPU: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.quick("correctness")
@pytest.mark.parametrize("part", parts.PARTS)
def test_part(part: str, tmp_path: Path) -> None:
    results = measure(part, tmp_path)
    assert results.failures(part) == 0
    assert results.rows(part)
    for row in results.rows(part):
        assert row.keys() >= COLUMNS[part]
        assert all(row[name] > 0 for name in row if name == "ms" or name.endswith(("_ms", "_per_s")))
        assert "goal" not in row or row.keys() >= {"met", "reached", "bound"}
    assert f"## {part} (" in markdown(results.values)


def python_with_torch_alone(folder: Path) -> Path:
    """The interpreter of an environment that holds torch, Triton, what these require, and no other package."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    wanted, linked = ["torch", "triton"], set()
    while wanted:
        package = wanted.pop()
        if package in linked:
            continue
        linked.add(package)
        for name in {file.parts[0] for file in metadata.files(package) or ()} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(metadata.distribution(package).locate_file(name))
        requirements = map(Requirement, metadata.requires(package) or ())
        wanted += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return folder / "bin" / "python"


@pytest.mark.process
@pytest.mark.slow
def test_sources_alone_are_enough(tmp_path: Path) -> None:
    """A bare checkout, in an environment without trtstream and any package but torch, called from elsewhere."""
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for room in ("benchmarks", "build", "deploy", "model_repo", "plugins", "trtstream"):
        shutil.copytree(ROOT / room, tmp_path / "sources" / room, ignore=ignored, symlinks=True)
    path, parts = tmp_path / "results.json", "methods,tensorrt"
    python, options = python_with_torch_alone(tmp_path / "torch"), ["--device=cpu", "--tiny", f"--json={path}"]
    done = subprocess.run(
        [python, "-m", "benchmarks.gpu", *options, f"--parts={parts}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "sources"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    methods = {row["method"] for row in rows_of(parts_of(path)["methods"])}
    assert {name for name in methods if name.startswith("recompute")} == {"recompute (torch)"}
    (neither,) = rows_of(parts_of(path)["tensorrt"])
    assert (neither["target"], neither["runs"]) == ("tensorrt and tensorrt-rtx", False)
    assert "trtstream[tensorrt]" in neither["note"]
    assert "trtstream[tensorrt-rtx]" in neither["note"]


@pytest.mark.slow
@pytest.mark.builder
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_tensorrt_builds_here_and_needs_a_gpu_to_run(tmp_path: Path) -> None:
    (row,) = measure("tensorrt", tmp_path).rows("tensorrt")
    assert (row["target"], row["version"], row["runs"]) == ("tensorrt-rtx", tensorrt_rtx.__version__, False)
    assert row["tiny_mb"] > 0
    assert row["note"] == "running it needs an NVIDIA GPU"


@pytest.mark.slow
def test_tensorrt_engines_pass_their_checks() -> None:
    assert all(row["ok"] for row in rows(engine_checks(interpreted_engine)))


def test_the_checks_see_a_ring_that_is_one_shorter() -> None:
    def shorter(checkpoint: models.RandomCheckpoint, build: BuildConfig) -> StreamingEngine:
        return interpreted_engine(checkpoint, replace(build, max_sink_token_length=build.max_sink_token_length + 1))

    assert not next(rows(engine_checks(shorter)))["ok"]


def test_tensorrt_rows_stand_beside_cudas() -> None:
    bench, model = Bench(CPU, TINY), models.TINY_LLAMA
    build, checkpoint = bench.build(32, 4, chunk=8), models.RandomCheckpoint(model, torch.float32, CPU)
    compared = {
        "cuda": engines.full_engine(model, build, checkpoint.weights()),
        "tensorrt-rtx": engines.filled(interpreted_engine(checkpoint, build)),
    }
    for part, found in {
        "decode": list(measurements.decode_rows(bench, compared, 4)),
        "prefill": list(measurements.prefill_rows(bench, compared, 20)),
    }.items():
        cuda, rtx = found
        assert [row["target"] for row in found] == ["cuda", "tensorrt-rtx"]
        assert cuda.keys() == rtx.keys() >= COLUMNS[part] - {"model", "window", "batch", "chunk"}
        assert cuda["times_cuda"] == 1.0
        assert cuda.get("floor_ms") == rtx.get("floor_ms")


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (models.SMOLLM2, 134_515_008),
        (models.TINYLLAMA, 1_100_048_384),
        (models.LLAMA_2_7B, 6_738_415_616),
        (models.FALCON_7B, 6_921_720_704),
    ],
)
def test_models_have_their_published_sizes(model: ModelConfig, parameters: int) -> None:
    assert models.weight_bytes(model, "float16") == 2 * parameters


def test_the_floor_counts_what_a_step_reads() -> None:
    model, build = models.TINY_LLAMA, BuildConfig(max_attention_window=40, sink_token_length=4, max_sink_token_length=8)
    weights = models.RandomCheckpoint(model, torch.float32, CPU).weights()
    layer = (64 + 2 * 32) * 64 + 64 * 64 + 2 * 128 * 64 + 64 * 128 + 2 * 64  # qkv, output, gate and up, down, norms
    head = 64 + 128 * 64
    keys_and_values = 2 * 2 * 2 * 16 * (4 + 32)  # 2 layers, 2 kv heads of 16, C = 36 of 40 slots
    assert models.step_bytes(model, build, weights, 3) == 4 * (2 * layer + head + 3 * 64 + 3 * keys_and_values)
    # int8: a byte for each of the layers' weights and a float32 for each of their rows
    rows = 128 + 64 + 256 + 64
    changed = 4 * (layer - 128) - (layer - 128) - 4 * rows
    quantized = models.quantized(weights, "int8")
    assert models.step_bytes(model, build, quantized, 3) == models.step_bytes(model, build, weights, 3) - 2 * changed


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(CPU, TINY)
    small = kv_bytes_per_session(models.TINY_LLAMA, bench.build(32, 1), "cuda")
    room = WORKSPACE + models.weight_bytes(models.TINY_LLAMA, "float32") + small
    monkeypatch.setattr(Bench, "free_bytes", lambda self: room)
    assert "note" not in next(rows(measurements.attention(bench)))
    monkeypatch.setattr(Bench, "free_bytes", lambda self: WORKSPACE)
    notes = [row["note"] for row in rows(measurements.decode(bench))]
    assert notes == ["does not fit: 0.0 GB of weights and KV caches"] * 8


@pytest.fixture(scope="module", params=[models.TINY_LLAMA, models.TINY_FALCON], ids=["llama", "falcon"])
def model(request: pytest.FixtureRequest) -> ModelConfig:
    return request.param


def differences(model: ModelConfig, other: Callable[[torch.Tensor], torch.Tensor], length: int) -> torch.Tensor:
    """Of the engine's logits after each token, against those of ``other``, in standard deviations [length]."""
    weights = models.RandomCheckpoint(model, torch.float32, CPU, std=0.2).weights()
    build = BuildConfig(max_batch_size=1, max_attention_window=20, dtype="float32")
    engine = engines.make_engine(model, build, weights)
    tokens = torch.randint(model.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([engine.decode([0], [token])[0] for token in tokens.tolist()])
    return (other(tokens) - expected).abs().amax(dim=1) / expected.std()


def test_whole_cache_rotation_gives_what_the_engine_gives(model: ModelConfig) -> None:
    def rotation(sinks: int, ring: int) -> Callable[[torch.Tensor], torch.Tensor]:
        weights = models.RandomCheckpoint(model, torch.float32, CPU, std=0.2).weights()
        method = baselines.WholeCacheRotation(model, weights, sinks, ring)
        return lambda tokens: torch.stack([method.step(token[None]) for token in tokens])

    assert differences(model, rotation(4, 16), 70).max() < 1e-4  # to 3 C
    for wrong in (rotation(3, 17), rotation(4, 15)):
        assert differences(model, wrong, 70).max() > 1e-2


def test_recompute_gives_what_the_engine_gives_below_c(model: ModelConfig) -> None:
    weights = models.RandomCheckpoint(model, torch.float32, CPU, std=0.2).weights()
    methods = [baselines.torch_recompute(model, weights)]
    if model.architecture == "LlamaForCausalLM":
        methods.append(baselines.transformers_recompute(model, weights))
    for method in methods:
        each = differences(
            model, lambda tokens, m=method: torch.stack([m(tokens[: n + 1]) for n in range(len(tokens))]), 24
        )
        assert each[:20].max() < 1e-4
        assert each[20:].min() > 1e-2, "past C recompute sees what the engine has evicted"


def test_goals_stand_on_top_of_the_tables_beside_what_is_possible() -> None:
    goal = {"goal": "within 5%", "met": True, "reached": 1.04, "bound": 1.0}
    cases = [{"labels": {"model": "a"}, "rows": [goal]}, {"labels": {"model": "b"}, "rows": [{"error": "no"}]}]
    text = markdown({"device": "GPU", "parts": {"flatness": {"state": "complete", "seconds": 1.0, "cases": cases}}})
    assert "| flatness | a |  |  |  | within 5% | yes | 1.04 | 1 |" in text.partition("## flatness")[0]
    assert "## flatness (complete, 1 failed, 1 s)" in text


def test_the_goals_of_a_decode_step() -> None:
    row = {"floor_ms": 1.0, "ms": 1.5, "end_to_end_to_floor": 1.19}
    assert measurements.decode_goal(row, 1).items() >= {"met": True, "reached": 1.19, "bound": 1.0}.items()
    assert not measurements.decode_goal(row | {"end_to_end_to_floor": 1.21}, 1)["met"]
    assert measurements.decode_goal(row, 64)["met"]
    assert not measurements.decode_goal(row | {"ms": 1.7}, 64)["met"]
    assert measurements.decode_goal(row, 8) == {}


def test_table() -> None:
    rows = [{"model": "a", "ms": 1.23456, "met": False}, {"model": "b", "note": "does not fit"}]
    assert table(rows).splitlines() == [
        "| model | ms | met | note |",
        "| --- | --- | --- | --- |",
        "| a | 1.235 | **no** |  |",
        "| b |  |  | does not fit |",
    ]
