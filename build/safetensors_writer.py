"""Writes safetensors files tensor by tensor, so that a model never has to fit in memory."""

from __future__ import annotations

import json
from pathlib import Path

import torch

# https://huggingface.co/docs/safetensors: 8 bytes of header length, a JSON header padded with spaces, then the data.
DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class SafetensorsWriter:
    """An open safetensors file. ``names`` are the names of all tensors to come, in any order; the file is complete once
    it is closed."""

    def __init__(self, path: Path, names: list[str]) -> None:
        # The first tensor begins at a multiple of 64 bytes, for readers that map the file and need it aligned.
        self._header_bytes = -(-sum(len(json.dumps(name)) + 160 for name in names) // 64) * 64 + 56
        self._header: dict[str, dict[str, object]] = {}
        self._offset = 0
        self._file = path.open("wb")
        self._file.seek(8 + self._header_bytes)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        self._file.write(data.data)
        self._header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._offset, self._offset + data.nbytes],
        }
        self._offset += data.nbytes

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._file as file:
            file.seek(0)
            file.write(self._header_bytes.to_bytes(8, "little"))
            file.write(json.dumps(self._header).encode().ljust(self._header_bytes))
