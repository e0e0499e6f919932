"""The ``cpu`` target: weights in the engine's dtype, and the decode step compiled for this machine's CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from trtstream import __version__
from trtstream.build.checkpoint import Checkpoint
from trtstream.build.engine_weights import EngineWeights
from trtstream.build.memory import MemoryEstimate, memory_estimate, tensor_by_tensor_peak
from trtstream.engine_dir import KERNEL, TOKENIZER, WEIGHTS, EngineConfig, new_directory, write_config
from trtstream.plugins.cpu_kernel import compile_kernel, compiled_instruction_sets
from trtstream.progress import Progress
from trtstream.settings import BuildConfig


def build_cpu_engine(checkpoint: Checkpoint, build: BuildConfig, output: Path, progress: Progress) -> EngineConfig:
    """Write the engine directory ``output`` atomically.

    ``progress`` counts the checkpoint's tensors. Peak memory is a few times the largest tensor.
    """
    with new_directory(output) as folder:
        compile_kernel(checkpoint.model, build, folder / KERNEL)
        cpu_weights(checkpoint, build).write(folder / WEIGHTS, progress)
        checkpoint.save_tokenizer(folder / TOKENIZER)
        toolchain = {
            "trtstream": __version__,
            "torch": torch.__version__,
            "instruction_sets": compiled_instruction_sets(),
        }
        return write_config(folder, "cpu", checkpoint.model, build, toolchain, checkpoint.fingerprint())


def cpu_weights(checkpoint: Checkpoint, build: BuildConfig) -> EngineWeights:
    """The engine's weights."""
    return EngineWeights(checkpoint, getattr(torch, build.dtype))


def cpu_memory(checkpoint: Checkpoint, build: BuildConfig) -> MemoryEstimate:
    """See `trtstream.build.memory.estimate_memory`."""
    weights = cpu_weights(checkpoint, build)
    return memory_estimate(checkpoint, build, "cpu", weights.nbytes, tensor_by_tensor_peak(checkpoint))
