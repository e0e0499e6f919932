"""The ``cpu`` target: weights in the engine's dtype, and the attention kernel compiled for this machine's CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from trtstream import __version__
from trtstream.build.checkpoint import Checkpoint
from trtstream.build.safetensors_writer import write_safetensors
from trtstream.engine_dir import KERNEL, TOKENIZER, WEIGHTS, EngineConfig, new_directory, write_config
from trtstream.plugins.cpu_kernel import compile_kernel, compiled_instruction_sets
from trtstream.progress import Progress
from trtstream.settings import BuildConfig


def build_cpu_engine(checkpoint: Checkpoint, build: BuildConfig, output: Path, progress: Progress) -> EngineConfig:
    """Write the engine directory ``output``, whole or not at all.

    ``progress`` is told how many of how many tensors are written. Peak memory is near the largest tensor.
    """
    dtype = getattr(torch, build.dtype)
    names = checkpoint.tensor_names()

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for done, name in enumerate(names):
            progress(done, len(names))
            yield name, checkpoint.tensor(name).to(dtype)
        progress(len(names), len(names))

    with new_directory(output) as folder:
        compile_kernel(checkpoint.model, build, folder / KERNEL)
        write_safetensors(folder / WEIGHTS, names, tensors())
        checkpoint.save_tokenizer(folder / TOKENIZER)
        toolchain = {
            "trtstream": __version__,
            "torch": torch.__version__,
            "instruction_sets": compiled_instruction_sets(),
        }
        return write_config(folder, "cpu", checkpoint.model, build, toolchain)
