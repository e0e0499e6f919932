"""The ``cuda`` target: weights in the engine's dtype, or quantized. Built on any machine, with or without a GPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from trtstream import __version__
from trtstream.build.checkpoint import Checkpoint
from trtstream.build.engine_weights import EngineWeights, projection_columns
from trtstream.build.memory import MemoryEstimate, memory_estimate, tensor_by_tensor_peak
from trtstream.engine_dir import TOKENIZER, WEIGHTS, EngineConfig, new_directory, write_config
from trtstream.plugins.quantized_weight import check_columns, quantize
from trtstream.progress import Progress
from trtstream.settings import BuildConfig


def build_cuda_engine(checkpoint: Checkpoint, build: BuildConfig, output: Path, progress: Progress) -> EngineConfig:
    """Write the engine directory ``output`` atomically.

    ``progress`` counts the checkpoint's tensors. Peak memory is a few times the largest tensor.
    """
    weights = cuda_weights(checkpoint, build)
    with new_directory(output) as folder:
        weights.write(folder / WEIGHTS, progress)
        checkpoint.save_tokenizer(folder / TOKENIZER)
        toolchain = {"trtstream": __version__, "torch": torch.__version__}
        return write_config(folder, "cuda", checkpoint.model, build, toolchain, checkpoint.fingerprint())


def cuda_weights(checkpoint: Checkpoint, build: BuildConfig) -> EngineWeights:
    """The engine's weights. Raises TrtstreamError if a projection has no format of the build's quantization."""
    dtype = getattr(torch, build.dtype)
    if build.quantization == "none":
        return EngineWeights(checkpoint, dtype)
    for projection, columns in projection_columns(checkpoint.model).items():
        check_columns(projection, columns, build.quantization)
    return EngineWeights(checkpoint, dtype, partial(quantize, quantization=build.quantization, dtype=dtype))


def cuda_memory(checkpoint: Checkpoint, build: BuildConfig) -> MemoryEstimate:
    """See `trtstream.build.memory.estimate_memory`."""
    weights = cuda_weights(checkpoint, build)
    return memory_estimate(checkpoint, build, "cuda", weights.nbytes, tensor_by_tensor_peak(checkpoint))
