"""The memory that an engine and its build will take, estimated before anything is read or built."""

from __future__ import annotations

from dataclasses import dataclass

from trtstream.build.checkpoint import Checkpoint
from trtstream.engine_dir import EngineMemory
from trtstream.plugins.kv_cache import kv_bytes_per_session
from trtstream.settings import BuildConfig
from trtstream.targets import TARGETS


@dataclass(frozen=True)
class MemoryEstimate(EngineMemory):
    """``build`` is the peak of a build, in bytes of the building machine's memory, mapped files included.

    It and the workspace are estimates, and the rest is exact.
    """

    build: int


def estimate_memory(checkpoint: Checkpoint, build: BuildConfig, target: str) -> MemoryEstimate:
    """Estimate an engine's memory. Reads no tensor and needs neither a GPU nor a target's libraries.

    Raises TrtstreamError for sizes that the target cannot divide or quantize.
    """
    estimate: MemoryEstimate = TARGETS[target].memory(checkpoint, build)
    return estimate


def memory_estimate(
    checkpoint: Checkpoint, build: BuildConfig, target: str, weights: int, peak: int, workspace: int | None = None
) -> MemoryEstimate:
    """An engine's memory with its target's part given: bytes of weights, of a build's peak and of the workspace."""
    per_session = kv_bytes_per_session(checkpoint.model, build, target)
    return MemoryEstimate(weights, per_session, build.max_batch_size, workspace, peak)


def tensor_by_tensor_peak(checkpoint: Checkpoint) -> int:
    """An estimate of the peak of a build that reads, converts and writes one tensor at a time.

    0.4 GB and three times the largest tensor in float32 (measured: 2.7 and 3.1 times).
    """
    return int(4e8 + 12 * max(checkpoint.blank_tensor(name).numel() for name in checkpoint.tensor_names()))
