"""Serving a repository of the tensorrtllm backend: the engine in it, and the installation that it needs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from trtstream.deploy.tensorrt_llm.package import BUILT, built_config
from trtstream.errors import TrtstreamError

MODEL = "tensorrt_llm"
BACKEND = Path("backends", "tensorrtllm", "libtriton_tensorrtllm.so")


@dataclass(frozen=True)
class BuiltEngine:
    """The engine in a repository: the TensorRT-LLM that built it, and how many processes, each with a GPU, run it."""

    version: str
    world_size: int


def find_built_engine(repository: Path) -> BuiltEngine | None:
    """The engine that the repository's tensorrt_llm model runs; None where the repository is of another kind."""
    folder = repository / MODEL / "1" / BUILT
    if not folder.is_dir():
        return None
    config = built_config(folder)
    if config is None:
        raise TrtstreamError(f"{folder} lacks some of its ranks; package the engine again")
    return BuiltEngine(config["version"], config["pretrained_config"]["mapping"]["world_size"])


def require_backend(tritonserver: Path, search_path: str, engine: BuiltEngine) -> None:
    """Raise TrtstreamError if the binary ``tritonserver``, with ``search_path`` as its PATH, cannot run the engine."""
    root = tritonserver.resolve().parent.parent
    if not (root / BACKEND).is_file():
        raise TrtstreamError(
            f"Triton's tensorrtllm backend is not at {root / BACKEND}; serve in the container with TensorRT-LLM "
            f"{engine.version} that the engine's build.sh names (nvcr.io/nvidia/tritonserver:<yy.mm>-trtllm-python-py3)"
        )
    if engine.world_size > 1 and shutil.which("mpirun", path=search_path) is None:
        raise TrtstreamError(
            f"the engine runs on {engine.world_size} GPUs and mpirun, which starts a process for each, is not on PATH; "
            "install Open MPI or serve in Triton's trtllm container"
        )
