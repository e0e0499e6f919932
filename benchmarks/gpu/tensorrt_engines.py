"""TensorRT engines to measure: random weights, built and loaded on this machine with the users' own commands."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.results import Row
from benchmarks.models import TINY_LLAMA, RandomCheckpoint
from trtstream.engine_dir import directory_bytes
from trtstream.errors import TrtstreamError
from trtstream.plugins.tensorrt_library import LIBRARIES, load_tensorrt
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.settings import BuildConfig
from trtstream.targets import TARGETS


def make_tensorrt_engine(target: str, checkpoint: RandomCheckpoint, build: BuildConfig) -> StreamingEngine:
    """Build an engine and load it. Raises TrtstreamError where it cannot run here."""
    from trtstream.runtime.loading import load_engine

    with TemporaryDirectory() as folder:
        build_engine(target, checkpoint, build, Path(folder) / "engine")
        return load_engine(Path(folder) / "engine")


def build_engine(target: str, checkpoint: RandomCheckpoint, build: BuildConfig, folder: Path) -> None:
    TARGETS[target].build(checkpoint, build, folder, lambda done, total: None)


def libraries(bench: Bench) -> Generator[Row, None, list[str]]:
    """A row for each installed TensorRT library: its version, and whether it runs a tiny engine on this GPU.

    Returns the targets that do. The others' notes have TensorRT's own error.
    """
    found, missing = [], []
    for target in LIBRARIES:
        try:
            version = load_tensorrt(target).__version__
        except TrtstreamError as error:
            missing.append(str(error))
            continue
        row = {"target": target, "version": version, **_tiny_engine(bench, target)}
        found.append(row)
        yield row
    if not found:
        yield {"target": " and ".join(LIBRARIES), "runs": False, "note": "; ".join(missing)}
    return [row["target"] for row in found if row["runs"]]


def _tiny_engine(bench: Bench, target: str) -> Row:
    from trtstream.runtime.loading import load_engine

    build = BuildConfig(max_batch_size=2, max_num_tokens=8, max_attention_window=32, dtype="float16")
    checkpoint = RandomCheckpoint(TINY_LLAMA, torch.float16, torch.device("cpu"))
    with TemporaryDirectory() as folder:
        engine = Path(folder) / "engine"
        row: Row = {"runs": False}
        started = time.perf_counter()
        try:
            build_engine(target, checkpoint, build, engine)
            row |= {"tiny_build_s": time.perf_counter() - started, "tiny_mb": directory_bytes(engine) / 1e6}
            if bench.device.type != "cuda":
                return row | {"note": "running it needs an NVIDIA GPU"}
            load_engine(engine).decode([0], [1]).tolist()
        except TrtstreamError as error:
            return row | {"note": str(error).replace(str(engine), "the engine")}
        return row | {"runs": True}
