"""The ``tensorrt-llm`` target: a converted checkpoint, and the engine where its ``trtllm-build`` is installed."""

from __future__ import annotations

from pathlib import Path

import torch

from trtstream import __version__
from trtstream.build.checkpoint import Checkpoint
from trtstream.build.memory import MemoryEstimate, memory_estimate, tensor_by_tensor_peak
from trtstream.build.tensorrt_llm.build_command import CHECKPOINT, build_engine, find_trtllm_build
from trtstream.build.tensorrt_llm.convert import conversion, convert_checkpoint
from trtstream.build.tensorrt_llm.releases import DEFAULT, Release, find_release
from trtstream.engine_dir import TOKENIZER, EngineConfig, new_directory, write_config
from trtstream.progress import Progress
from trtstream.settings import BuildConfig, TensorrtLlmOptions


def build_tensorrt_llm_engine(
    checkpoint: Checkpoint, build: BuildConfig, output: Path, progress: Progress
) -> EngineConfig:
    """Write the engine directory ``output`` atomically.

    It has ``checkpoint/``, ``tokenizer/``, ``build.sh`` and, if the release's trtllm-build is installed, ``engine/``.

    ``progress`` counts the checkpoint's tensors, then ranks that are built. See `convert_checkpoint` for memory and
    errors.
    """
    release = choose_release(TensorrtLlmOptions.of(build).version)
    with new_directory(output) as folder:
        convert_checkpoint(checkpoint, build, release, folder / CHECKPOINT, progress)
        checkpoint.save_tokenizer(folder / TOKENIZER)
        built_by = build_engine(folder, checkpoint.model, build, release, progress)
        toolchain = {"trtstream": __version__, "tensorrt_llm": built_by or release.name}
        return write_config(folder, "tensorrt-llm", checkpoint.model, build, toolchain, checkpoint.fingerprint())


def tensorrt_llm_memory(checkpoint: Checkpoint, build: BuildConfig) -> MemoryEstimate:
    """See `trtstream.build.memory.estimate_memory`; the weights are those before ``trtllm-build`` quantizes them.

    Raises TrtstreamError for whatever `build_tensorrt_llm_engine` would refuse.
    """
    release = choose_release(TensorrtLlmOptions.of(build).version)
    placed, _ = conversion(checkpoint, build, release)
    dtype = getattr(torch, build.dtype)
    blank = {name: checkpoint.blank_tensor(name).to(dtype) for name in placed}
    weights = sum(piece.of(blank[name]).nbytes for name, parts in placed.items() for piece in parts)
    return memory_estimate(checkpoint, build, "tensorrt-llm", weights, tensor_by_tensor_peak(checkpoint))


def choose_release(version: str | None) -> Release:
    """The release of ``version``, else of the installed trtllm-build, else `DEFAULT`."""
    if version is None:
        installed = find_trtllm_build()
        version = DEFAULT.name if installed is None else installed[1]
    return find_release(version)
