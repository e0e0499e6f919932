"""The ``tensorrt-llm`` target: a converted checkpoint, and the engine where its ``trtllm-build`` is at hand."""

from __future__ import annotations

from pathlib import Path

from trtstream import __version__
from trtstream.build.checkpoint import Checkpoint
from trtstream.build.tensorrt_llm.build_command import CHECKPOINT, build_engine, find_trtllm_build
from trtstream.build.tensorrt_llm.convert import convert_checkpoint
from trtstream.build.tensorrt_llm.releases import DEFAULT, Release, find_release
from trtstream.engine_dir import TOKENIZER, EngineConfig, new_directory, write_config
from trtstream.progress import Progress
from trtstream.settings import BuildConfig


def build_tensorrt_llm_engine(
    checkpoint: Checkpoint, build: BuildConfig, output: Path, progress: Progress
) -> EngineConfig:
    """Write the engine directory ``output``, whole or not at all.

    It has ``checkpoint/``, ``tokenizer/``, ``build.sh`` and, where trtllm-build of the release is at hand, ``engine/``.

    ``progress`` is told how many of how many tensors are written, then how many of how many ranks are built. See
    `convert_checkpoint` for memory and errors.
    """
    release = choose_release(build.tensorrt_llm_version)
    with new_directory(output) as folder:
        convert_checkpoint(checkpoint, build, release, folder / CHECKPOINT, progress)
        checkpoint.save_tokenizer(folder / TOKENIZER)
        built_by = build_engine(folder, checkpoint.model, build, release, progress)
        toolchain = {"trtstream": __version__, "tensorrt_llm": built_by or release.name}
        return write_config(folder, "tensorrt-llm", checkpoint.model, build, toolchain)


def choose_release(version: str | None) -> Release:
    """The release of ``version``, else of the installed trtllm-build, else `DEFAULT`."""
    if version is None:
        installed = find_trtllm_build()
        version = DEFAULT.name if installed is None else installed[1]
    return find_release(version)
