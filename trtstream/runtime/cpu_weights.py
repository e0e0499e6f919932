"""The cpu target's weights in one piece of memory, laid out for the decode step; torch's products use them in place."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from trtstream.plugins.cpu_structures import COLUMNS
from trtstream.plugins.huge_pages import new_memory
from trtstream.runtime.decoder import DecoderWeights, collect_weights, open_weights
from trtstream.settings import DTYPE_BYTES, ModelConfig

ALIGNMENT = 128  # two cache lines, which a CPU fetches together


def read_cpu_weights(path: Path, model: ModelConfig, dtype: str) -> DecoderWeights:
    """The weights in an engine's file: matrices with padded rows, behind each other, and vectors of their own.

    Raises TrtstreamError if they are not the model's.
    """
    with open_weights(path, model, torch.device("cpu")) as file:
        names = set(file.keys())
        shapes = {name: file.get_slice(name).get_shape() for name in sorted(names)}
        sizes = {name: _nbytes(shape, dtype) for name, shape in shapes.items() if len(shape) == 2}
        pieces = new_memory(sum(sizes.values())).split(list(sizes.values()))
        memory = dict(zip(sizes, pieces, strict=True))
        placed: dict[str, torch.Tensor] = {}  # a tied head is the embedding

        def read(name: str) -> torch.Tensor:
            if name not in placed:
                tensor = file.get_tensor(name)
                if name in memory:
                    rows, columns = tensor.shape
                    values = memory[name].view(tensor.dtype)[: rows * _padded(columns)]
                    tensor = values.view(rows, _padded(columns))[:, :columns].copy_(tensor)
                placed[name] = tensor
            return placed[name]

        return collect_weights(model, names, read)


def padded_rows(weight: torch.Tensor) -> torch.Tensor:
    """A weight [out, in] with room for padding behind each row, as `read_cpu_weights` has them; a copy, if need be."""
    columns = weight.shape[1]
    if weight.stride() == (_padded(columns), 1):
        return weight
    return weight.new_zeros(len(weight), _padded(columns))[:, :columns].copy_(weight)


def _padded(columns: int) -> int:
    return math.ceil(columns / COLUMNS) * COLUMNS


def _nbytes(shape: list[int], dtype: str) -> int:
    rows, columns = shape
    return math.ceil(rows * _padded(columns) * DTYPE_BYTES[dtype] / ALIGNMENT) * ALIGNMENT
