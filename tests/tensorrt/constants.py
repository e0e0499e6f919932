"""A TensorRT network's types as torch's, and the constants in its memory."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import tensorrt_rtx as trt

# By the name of a trt.DataType. torch has no int4: one value takes an int8.
DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "INT4": torch.int8,
    "BOOL": torch.bool,
}


class _Weights(ctypes.Structure):
    """nvinfer1::Weights."""

    _fields_ = (("type", ctypes.c_int32), ("values", ctypes.c_void_p), ("count", ctypes.c_int64))


def read_constant(layer: trt.IConstantLayer) -> torch.Tensor:
    """A constant layer's values: a view of the memory that whoever built the network owns, or, of int4, a copy.

    Raises ValueError for a type that `DTYPES` does not name.
    """
    weights, shape = layer.weights, tuple(layer.shape)
    if isinstance(weights, np.ndarray):
        return torch.from_numpy(weights).view(shape)
    dtype = weights.dtype.name
    if dtype == "BF16":
        return _memory(weights, 2 * weights.size).view(torch.bfloat16).view(shape)
    if dtype == "INT4":
        return _unpack_int4(_memory(weights, (weights.size + 1) // 2))[: weights.size].view(shape)
    raise ValueError(f"a constant of type {dtype} is not known")


def _memory(weights: trt.Weights, size: int) -> torch.Tensor:
    """The bytes of weights of a type that numpy lacks, for which the bindings give no pointer: uint8 [size]."""
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    # pybind11 keeps the address of the C++ object right after the head of the Python object.
    address = ctypes.c_void_p.from_address(id(weights) + object.__basicsize__).value
    held = _Weights.from_address(address)
    if (held.type, held.count) != (int(weights.dtype), weights.size):
        raise ValueError("these bindings keep weights in another layout than pybind11 2 and 3 do")
    return torch.frombuffer((ctypes.c_uint8 * size).from_address(held.values), dtype=torch.uint8)


def _unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """Two's complement numbers of 4 bits, the low half of a byte first: uint8 [n] -> int8 [2 n]."""
    halves = torch.stack((packed & 15, packed >> 4), dim=1).view(torch.int8)
    return ((halves ^ 8) - 8).flatten()
