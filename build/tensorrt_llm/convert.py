"""Writes a checkpoint in TensorRT-LLM's format: ``config.json`` and one ``rankN.safetensors`` for each GPU."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from trtstream.build.checkpoint import Checkpoint
from trtstream.build.safetensors_writer import SafetensorsWriter
from trtstream.build.tensorrt_llm.checkpoint_config import checkpoint_config
from trtstream.build.tensorrt_llm.releases import Release
from trtstream.build.tensorrt_llm.sharding import Piece, pieces
from trtstream.progress import Progress
from trtstream.settings import BuildConfig, TensorrtLlmOptions


def conversion(
    checkpoint: Checkpoint, build: BuildConfig, release: Release
) -> tuple[dict[str, list[Piece]], dict[str, Any]]:
    """The pieces of each canonical tensor, and the config of the converted checkpoint. Reads no tensor.

    Raises TrtstreamError for a model that the release cannot run, or that cannot be divided among the ranks.
    """
    model, names = checkpoint.model, checkpoint.tensor_names()
    placed = pieces(model, names, TensorrtLlmOptions.of(build))
    return placed, checkpoint_config(model, names, build, release)


def convert_checkpoint(
    checkpoint: Checkpoint, build: BuildConfig, release: Release, folder: Path, progress: Progress
) -> None:
    """Write ``folder``, which must not exist, for ``trtllm-build`` of ``release``.

    ``progress`` counts the checkpoint's tensors. All rank files are open at once, so that each tensor is read once;
    peak memory is near twice the largest tensor. For errors see `conversion`.
    """
    placed, config = conversion(checkpoint, build, release)
    names = checkpoint.tensor_names()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    dtype = getattr(torch, build.dtype)
    with ExitStack() as files:
        ranks = []
        for rank in range(TensorrtLlmOptions.of(build).ranks):
            stored = [piece.name for parts in placed.values() for piece in parts if piece.rank == rank]
            ranks.append(files.enter_context(SafetensorsWriter(folder / f"rank{rank}.safetensors", stored)))
        for done, name in enumerate(names):
            progress(done, len(names))
            tensor = checkpoint.tensor(name).to(dtype)
            for piece in placed[name]:
                ranks[piece.rank].write(piece.name, piece.of(tensor))
        progress(len(names), len(names))
