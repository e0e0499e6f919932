"""The weights of a TensorRT engine, in a file that is mapped into memory while the builder reads it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open

from trtstream.build.checkpoint import Checkpoint
from trtstream.build.engine_weights import EngineWeights, projection_columns
from trtstream.build.tensorrt.quantize import GROUP, quantize
from trtstream.errors import TrtstreamError
from trtstream.progress import Progress
from trtstream.settings import BuildConfig


def tensorrt_weights(checkpoint: Checkpoint, build: BuildConfig) -> EngineWeights:
    """The engine's weights. Raises TrtstreamError if a projection has no format of the build's quantization."""
    dtype = getattr(torch, build.dtype)
    if build.quantization == "none":
        return EngineWeights(checkpoint, dtype)
    for projection, columns in projection_columns(checkpoint.model).items():
        if build.quantization == "int4" and columns % GROUP:
            raise TrtstreamError(
                f"the weight of {projection} has {columns} columns, and int4 takes multiples of {GROUP}; "
                "use --quantization int8"
            )
    return EngineWeights(checkpoint, dtype, partial(quantize, quantization=build.quantization, dtype=dtype))


def staged_weights(weights: EngineWeights, folder: Path, progress: Progress) -> dict[str, torch.Tensor]:
    """Write the weights to a file of ``folder`` and map it into memory: tensors by name, whose pages the kernel reads
    when they are used and may drop again. Nothing is left in ``folder``; the disk space is free once the tensors are.
    """
    path = folder / "weights.safetensors"
    weights.write(path, progress)
    with safe_open(path, framework="pt") as file:
        mapped = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    path.unlink()
    return mapped
