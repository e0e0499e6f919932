"""The ``tensorrt-llm`` target: a converted checkpoint, and the engine where its ``trtllm-build`` is at hand."""

from __future__ import annotations

from pathlib import Path

from trtstream import __version__
from trtstream.build.checkpoint import Checkpoint
from trtstream.build.tensorrt_llm.convert import convert_checkpoint
from trtstream.build.tensorrt_llm.releases import DEFAULT, find_release
from trtstream.engine_dir import TOKENIZER, EngineConfig, new_directory, write_config
from trtstream.progress import Progress
from trtstream.settings import BuildConfig


def build_tensorrt_llm_engine(
    checkpoint: Checkpoint, build: BuildConfig, output: Path, progress: Progress
) -> EngineConfig:
    """Write the engine directory ``output``, whole or not at all: ``checkpoint/`` and ``tokenizer/``.

    ``progress`` is told how many of how many tensors are written. See `convert_checkpoint` for memory and errors.
    """
    release = find_release(build.tensorrt_llm_version or DEFAULT.name)
    with new_directory(output) as folder:
        convert_checkpoint(checkpoint, build, release, folder / "checkpoint", progress)
        checkpoint.save_tokenizer(folder / TOKENIZER)
        toolchain = {"trtstream": __version__, "tensorrt_llm": build.tensorrt_llm_version or DEFAULT.name}
        return write_config(folder, "tensorrt-llm", checkpoint.model, build, toolchain)
