"""The cpu target's weights in one piece of memory, laid out for the decode step, which torch's products share."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import torch

from trtstream.plugins.block_weight import BLOCK_FORMATS
from trtstream.plugins.cpu_structures import COLUMNS, FORMATS
from trtstream.plugins.huge_pages import new_memory
from trtstream.runtime.decoder import DecoderWeights, collect_weights, open_weights
from trtstream.settings import DTYPE_BYTES, ModelConfig

ALIGNMENT = 128  # two cache lines, which a CPU fetches together


def read_cpu_weights(path: Path, model: ModelConfig, dtype: str, library: ctypes.CDLL | None = None) -> DecoderWeights:
    """The weights in an engine's file: matrices behind each other, and vectors of their own.

    Floats have padded rows. Blocks are in tiles, which ``library`` lays out and alone computes with: their tensors have
    the shape of the file's, and other bytes. Raises TrtstreamError if the weights are not the model's.
    """
    tile = 1 if library is None else ctypes.c_int64.in_dll(library, "rows_of_a_tile").value
    with open_weights(path, model, torch.device("cpu")) as file:
        names = set(file.keys())
        shapes = {name: file.get_slice(name).get_shape() for name in sorted(names)}
        sizes = {name: _nbytes(name, shape, dtype, tile) for name, shape in shapes.items() if len(shape) == 2}
        pieces = new_memory(sum(sizes.values())).split(list(sizes.values()))
        memory = dict(zip(sizes, pieces, strict=True))
        placed: dict[str, torch.Tensor] = {}  # a tied head is the embedding

        def read(name: str) -> torch.Tensor:
            if name not in placed:
                tensor = file.get_tensor(name)
                kind = name.rpartition(".")[2]
                if kind in BLOCK_FORMATS:
                    assert library is not None, "blocks need a library"
                    tensor = _in_tiles(library, tensor, FORMATS[kind], memory[name])
                elif name in memory:
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


def _in_tiles(library: ctypes.CDLL, blocks: torch.Tensor, number: int, memory: torch.Tensor) -> torch.Tensor:
    """Lay the rows of ``blocks`` out in ``memory``."""
    rows, row_bytes = blocks.shape
    library.lay_out(
        ctypes.c_int64(number),
        ctypes.c_void_p(blocks.data_ptr()),
        ctypes.c_int64(rows),
        ctypes.c_int64(row_bytes),
        ctypes.c_void_p(memory.data_ptr()),
    )
    return memory[: blocks.numel()].view(rows, row_bytes)


def _padded(columns: int) -> int:
    return math.ceil(columns / COLUMNS) * COLUMNS


def _nbytes(name: str, shape: list[int], dtype: str, tile: int) -> int:
    rows, columns = shape
    if name.rpartition(".")[2] in BLOCK_FORMATS:
        size = math.ceil(rows / tile) * tile * columns
    else:
        size = rows * _padded(columns) * DTYPE_BYTES[dtype]
    return math.ceil(size / ALIGNMENT) * ALIGNMENT
