"""The structures of plugins/cpu/ in Python: what the decode step's library takes, field by field as C++ declares it."""

from __future__ import annotations

import ctypes

FORMATS = {"float32": 0, "bfloat16": 1, "Q8_0": 2, "Q4_0": 3, "Q4_1": 4}
"""Numbers of the weights' formats in plugins/cpu/formats.h, by names of dtypes and of blocks."""
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
"""The activations of plugins/cpu/mlp.h, in its order."""
COLUMNS = 32
"""The columns of a weight in memory are a multiple of this, the last ones zeros."""


class Matrix(ctypes.Structure):
    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("format", ctypes.c_int64),
    )


class Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", Norm),
        ("mlp_norm", Norm),
        ("q_norm", Norm),
        ("k_norm", Norm),
        ("qkv", Matrix),
        ("attention_output", Matrix),
        ("up", Matrix),
        ("down", Matrix),
    )


class Model(ctypes.Structure):
    _fields_ = (
        ("embedding", Matrix),
        ("head", Matrix),
        ("norm", Norm),
        ("layers", ctypes.POINTER(Layer)),
        ("num_layers", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("intermediate", ctypes.c_int64),
        ("is_layer_norm", ctypes.c_int64),
        ("is_parallel", ctypes.c_int64),
        ("is_shared_norm", ctypes.c_int64),
        ("activation", ctypes.c_int64),
        ("eps", ctypes.c_double),
        ("clip_qkv", ctypes.c_double),
        ("max_rows", ctypes.c_int64),
        ("max_threads", ctypes.c_int64),
        ("max_chunk", ctypes.c_int64),
        ("width", ctypes.c_int64),
    )


class Sessions(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("rotation", ctypes.c_void_p),
        ("slopes", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("session_stride", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("max_sinks", ctypes.c_int64),
    )
