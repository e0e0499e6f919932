"""Opens an engine directory: checks that this machine can run it, and has its target load the backend."""

from __future__ import annotations

from pathlib import Path

import torch

from trtstream.engine_dir import EngineConfig, check_runnable, engine_memory, read_engine, verify_files
from trtstream.errors import TrtstreamError, one_line
from trtstream.machine import available_memory
from trtstream.runtime.backend import Backend
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.targets import TARGETS


def load_engine(folder: str | Path) -> StreamingEngine:
    """Load an engine for this process. Raises TrtstreamError in one line if it is damaged or cannot run here."""
    folder = Path(folder)
    config = read_engine(folder)
    check_runnable(folder, config)
    target = TARGETS[config.target]
    assert target.load is not None, "a target without it says why_not"
    available = free_memory(target.device)
    check_memory(folder, config, available)
    verify_files(folder, config)
    try:
        backend: Backend = target.load(folder, config)
    except torch.OutOfMemoryError as error:
        raise TrtstreamError(
            f"{folder} fits into the {available / 1e9:.2f} GB that were free on the GPU, but leaves too little to "
            "compute in; build with a smaller --max-batch-size, --max-num-tokens or window"
        ) from error
    except TrtstreamError:
        raise
    except Exception as error:  # each library has its own for files that it cannot read
        raise TrtstreamError(f"{folder} cannot be loaded ({one_line(error)}); rebuild the engine") from error
    return StreamingEngine(config.pretrained_config, config.build_config, backend)


def free_memory(device: str) -> int:
    """Bytes that an engine can take on ``device``: of this machine's memory ("cpu"), or of its GPU's ("cuda")."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return available_memory()


def check_memory(folder: Path, config: EngineConfig, available: int) -> None:
    """Raise TrtstreamError if weights and caches take more than ``available`` bytes."""
    memory = engine_memory(folder, config)
    if memory.weights + memory.kv_cache > available:
        raise TrtstreamError(
            f"{folder} needs {memory.weights / 1e9:.2f} GB for weights and {memory.kv_cache / 1e9:.2f} GB for "
            f"{memory.sessions} sessions, and {available / 1e9:.2f} GB are free; build with a smaller --max-batch-size "
            "or window"
        )
