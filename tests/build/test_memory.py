"""``trtstream build --dry-run``: its estimates of memory, held against engines that are then built."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.command_line import run_in_process
from trtstream.build.checkpoint import Checkpoint, open_checkpoint
from trtstream.build.memory import estimate_memory
from trtstream.engine_dir import engine_memory
from trtstream.settings import BuildConfig
from trtstream.targets import TARGETS

BUILD = BuildConfig(max_batch_size=3, max_num_tokens=8, max_attention_window=24)
HEADER = 100_000  # bytes of a safetensors file besides its weights, at most


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "llama-tied", intermediate_size=128)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


@pytest.mark.parametrize(
    ("target", "dtype", "quantization"),
    [
        ("cpu", "float32", "none"),
        ("cpu", "bfloat16", "none"),
        ("cuda", "float16", "none"),
        ("cuda", "float16", "int8"),
        ("cuda", "float16", "int4"),
        ("tensorrt-llm", "float16", "none"),
    ],
)
def test_the_estimate_is_what_the_engine_takes(
    target: str, dtype: str, quantization: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    build = replace(BUILD, dtype=dtype, quantization=quantization)
    estimate = estimate_memory(checkpoint, build, target)
    config = TARGETS[target].build(checkpoint, build, tmp_path / "engine", lambda done, total: None)
    built = engine_memory(tmp_path / "engine", config)
    assert built.weights - HEADER < estimate.weights < built.weights
    assert estimate.weights > built.weights / 3
    assert estimate.kv_cache_per_session == built.kv_cache_per_session
    assert estimate.total == estimate.weights + 3 * estimate.kv_cache_per_session


@pytest.mark.parametrize("target", TARGETS)
def test_a_dry_run_needs_nothing_and_writes_nothing(
    target: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(os.listdir(folder))
    monkeypatch.chdir(tmp_path)
    done = run_in_process("build", folder, "--target", target, "--dry-run", "--gpu-memory", 0.01)
    assert done.returncode == 0, done.stderr
    shown = dict(cells(line) for line in done.stdout.splitlines() if "│" in line)
    assert shown["target"] == target
    assert shown["memory: build"].startswith("about ")
    sessions = shown["sessions in 0.01 GB"]
    if TARGETS[target].library is None:
        assert shown["memory: workspace"] == "no estimate, not in the total"
        assert re.fullmatch(r"at most \d+, without room for the workspace", sessions)
    else:
        assert shown["memory: workspace"].startswith("about ")
        assert int(sessions) >= 0
    assert os.listdir(tmp_path) == []
    assert sorted(os.listdir(folder)) == before


def cells(line: str) -> tuple[str, str]:
    _, name, value, _ = (cell.strip() for cell in line.split("│"))
    return name, value


LLM_REFUSALS = [
    ("llama-rope-yarn", (), r"TensorRT-LLM 0\.17 has no yarn RoPE scaling for Llama"),
    ("llama-rope-llama3", (), r"rotates cached keys without llama3's frequencies"),
    ("llama-gqa", ("--tensorrt-llm-version", "1.1"), r"TensorRT-LLM 1\.1 has no attention sinks"),
    ("llama-gqa", ("--tp-size", 3), r"--tp-size 3 does not divide the 4 attention heads"),
    ("falcon-40b", (), "TensorRT-LLM asserts that StreamingLLM is for Llama only"),
]


@pytest.mark.parametrize(("variant", "options", "message"), LLM_REFUSALS)
def test_a_dry_run_refuses_what_the_build_refuses(
    variant: str, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", variant)
    arguments = ("build", folder, "--target", "tensorrt-llm", *options)
    plan = run_in_process(*arguments, "--dry-run")
    build = run_in_process(*arguments, "--output", tmp_path / "engine")
    assert plan.returncode == build.returncode == 1
    assert plan.stderr == build.stderr
    assert plan.stdout == ""
    assert re.search(message, plan.stderr)
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_as_many_sessions_fit_as_the_total_says(checkpoint: Checkpoint) -> None:
    memory = estimate_memory(checkpoint, replace(BUILD, dtype="float16"), "tensorrt-rtx")
    assert memory.workspace is not None
    assert memory.sessions_in(memory.total) == 3
    assert memory.sessions_in(memory.total - 1) == 2
    assert memory.sessions_in(memory.weights) == 0


def test_a_build_says_where_to_write(folder: Path) -> None:
    done = run_in_process("build", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Missing option '--output'" in done.stderr
