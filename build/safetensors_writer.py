"""Writes a safetensors file tensor by tensor, so that a model never has to fit in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch

# https://huggingface.co/docs/safetensors: 8 bytes of header length, a JSON header padded with spaces, then the data.
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_safetensors(path: Path, names: list[str], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write named tensors as they come. ``names`` are all their names, known before the first tensor is made."""
    room = sum(len(json.dumps(name)) + 160 for name in names) + 16
    header: dict[str, dict[str, object]] = {}
    with path.open("wb") as file:
        file.seek(8 + room)
        offset = 0
        for name, tensor in tensors:
            data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
            file.write(data)
            header[name] = {
                "dtype": DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, offset + data.nbytes],
            }
            offset += data.nbytes
        file.seek(0)
        file.write(room.to_bytes(8, "little"))
        file.write(json.dumps(header).encode().ljust(room))
