"""The ``cuda`` target: weights in the engine's dtype, or quantized. Built on any machine, with or without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch

from trtstream import __version__
from trtstream.build.checkpoint import Checkpoint
from trtstream.build.safetensors_writer import write_safetensors
from trtstream.engine_dir import TOKENIZER, WEIGHTS, EngineConfig, new_directory, write_config
from trtstream.plugins.quantized_linear import check_columns, quantize
from trtstream.progress import Progress
from trtstream.settings import BuildConfig, ModelConfig

PARTS = {"int8": ("weight", "scales"), "int4": ("weight", "scales", "zeros")}
"""What is stored of a quantized weight: the fields of `QuantizedWeight`, in order."""


def build_cuda_engine(checkpoint: Checkpoint, build: BuildConfig, output: Path, progress: Progress) -> EngineConfig:
    """Write the engine directory ``output``, whole or not at all.

    ``progress`` is told how many of how many tensors are written. Peak memory is a few times the largest tensor.
    """
    dtype, quantization = getattr(torch, build.dtype), build.quantization
    columns = {} if quantization == "none" else _projection_columns(checkpoint.model)
    for projection, number in columns.items():
        check_columns(projection, number, quantization)

    def stored_names(name: str) -> list[str]:
        layer, _, kind = name.rpartition(".")
        is_quantized = kind == "weight" and layer.rpartition(".")[2] in columns
        return [f"{layer}.{part}" for part in PARTS[quantization]] if is_quantized else [name]

    names = {name: stored_names(name) for name in checkpoint.tensor_names()}

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for done, (name, stored) in enumerate(names.items()):
            progress(done, len(names))
            tensor = checkpoint.tensor(name)
            made = [tensor.to(dtype)] if stored == [name] else quantize(tensor, quantization, dtype)
            yield from zip(stored, made, strict=False)
        progress(len(names), len(names))

    with new_directory(output) as folder:
        write_safetensors(folder / WEIGHTS, [*chain.from_iterable(names.values())], tensors())
        checkpoint.save_tokenizer(folder / TOKENIZER)
        toolchain = {"trtstream": __version__, "torch": torch.__version__}
        return write_config(folder, "cuda", checkpoint.model, build, toolchain)


def _projection_columns(model: ModelConfig) -> dict[str, int]:
    """What is quantized in each layer: the projections, by name, with the columns of their weights."""
    return {
        "qkv": model.hidden_size,
        "attention_output": model.num_attention_heads * model.head_dim,
        "gate_up" if model.gated_mlp else "up": model.hidden_size,
        "down": model.intermediate_size,
    }
