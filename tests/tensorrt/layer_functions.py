"""Each layer of a TensorRT network in torch, as TensorRT's operator reference defines it.

A function takes the layer and the tensors at its inputs, None where an optional one is missing, and returns the tensor
at its output. Arithmetic on float16 and bfloat16 is done in float32 and left there: the caller rounds once, to the
output's type. So products and sums accumulate in float32, as a GPU's kernels do, and nothing is fused.

A network is strongly typed: what TensorRT would have to convert raises ValueError, as does what is out of bounds, which
TensorRT leaves undefined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from tests.tensorrt.constants import DTYPES

if TYPE_CHECKING:
    import tensorrt_rtx as trt

Tensor = torch.Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int32, torch.int64)
NUMBERS = FLOATS + INTEGERS
BOOLS = (torch.bool,)


def wide(*tensors: Tensor) -> list[Tensor]:
    return [x.float() if x.dtype in FLOATS else x for x in tensors]


def check_types(allowed: tuple[torch.dtype, ...], *tensors: Tensor) -> None:
    """Raise ValueError unless all have one type, and that one of ``allowed``."""
    types = {x.dtype for x in tensors}
    if len(types) > 1 or not types <= set(allowed):
        raise ValueError(f"takes one type of {_names(allowed)}, not {_names(x.dtype for x in tensors)}")


def _names(types: Iterable[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in types)


def check_ranks(*tensors: Tensor) -> None:
    if len({x.ndim for x in tensors}) > 1:
        raise ValueError(f"takes tensors of one rank, not of shapes {', '.join(str(tuple(x.shape)) for x in tensors)}")


def check_indices(indices: Tensor, size: int) -> None:
    check_types(INTEGERS, indices)
    if indices.numel() and not (indices.min() >= 0 and indices.max() < size):
        raise ValueError(f"indices {int(indices.min())} to {int(indices.max())} do not fit a dimension of {size}")


def _axes(mask: int) -> list[int]:
    """The dimensions whose bits are set."""
    return [axis for axis in range(mask.bit_length()) if mask >> axis & 1]


def _known(table: dict[str, Any], operation: Any) -> Any:
    """The table's entry for a value of one of TensorRT's enums."""
    if operation.name not in table:
        raise ValueError(f"operation {operation.name} is not known")
    return table[operation.name]


# Moving data


def identity(layer: trt.ILayer, x: Tensor) -> Tensor:
    return x


def cast(layer: trt.ICastLayer, x: Tensor) -> Tensor:
    return x.to(DTYPES[layer.to_type.name])


def shape(layer: trt.IShapeLayer, x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int64)


def shuffle(layer: trt.IShuffleLayer, x: Tensor, sizes: Tensor | None = None) -> Tensor:
    x = x.permute(list(layer.first_transpose)[: x.ndim])
    new = layer.reshape_dims if sizes is None else sizes.tolist()
    if new is not None:
        if layer.zero_is_placeholder:
            new = [size or x.shape[axis] for axis, size in enumerate(new)]
        x = x.reshape(tuple(new))
    return x.permute(list(layer.second_transpose)[: x.ndim])


def unsqueeze(layer: trt.IUnsqueezeLayer, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def squeeze(layer: trt.ISqueezeLayer, x: Tensor, axes: Tensor | None = None) -> Tensor:
    declared = layer.get_input(0).shape
    gone = [axis for axis, size in enumerate(declared) if size == 1] if axes is None else axes.tolist()
    for axis in gone:
        if x.shape[axis] != 1:
            raise ValueError(f"dimension {axis} of {tuple(x.shape)} is not 1")
    return x.squeeze(gone)


def concatenation(layer: trt.IConcatenationLayer, *tensors: Tensor) -> Tensor:
    check_types((*NUMBERS, *BOOLS), *tensors)
    return torch.cat(tensors, dim=layer.axis)


def gather(layer: trt.IGatherLayer, x: Tensor, indices: Tensor) -> Tensor:
    if layer.mode.name != "DEFAULT" or layer.num_elementwise_dims:
        raise ValueError(f"mode {layer.mode.name} with {layer.num_elementwise_dims} element-wise dims is not known")
    check_indices(indices, x.shape[layer.axis])
    rows = x.index_select(layer.axis, indices.flatten())
    return rows.unflatten(layer.axis, indices.shape) if indices.ndim else rows.squeeze(layer.axis)


def slice_(
    layer: trt.ISliceLayer,
    x: Tensor,
    start: Tensor | None = None,
    size: Tensor | None = None,
    stride: Tensor | None = None,
    value: Tensor | None = None,
) -> Tensor:
    mode = layer.mode.name
    if mode not in ("STRICT_BOUNDS", "FILL"):
        raise ValueError(f"mode {mode} is not known")
    axes = range(x.ndim) if layer.axes is None else layer.axes
    value = x.new_zeros(()) if value is None else value
    check_types((x.dtype,), x, value)
    ranges = zip(
        layer.start if start is None else start.tolist(),
        layer.shape if size is None else size.tolist(),
        layer.stride if stride is None else stride.tolist(),
        strict=True,
    )
    for axis, (first, count, step) in zip(axes, ranges, strict=True):
        if step == 1 and first >= 0 and first + count <= x.shape[axis]:
            x = x.narrow(axis, first, count)
            continue
        index = first + step * torch.arange(count)
        outside = (index < 0) | (index >= x.shape[axis])
        if mode == "STRICT_BOUNDS":
            check_indices(index, x.shape[axis])
        x = x.index_select(axis, index.masked_fill(outside, 0))
        if outside.any():
            x = torch.where(outside.view(-1, *[1] * (x.ndim - axis - 1)), value, x)
    return x


def select(layer: trt.ISelectLayer, condition: Tensor, then: Tensor, otherwise: Tensor) -> Tensor:
    check_types(BOOLS, condition)
    check_types((*NUMBERS, *BOOLS), then, otherwise)
    check_ranks(condition, then, otherwise)
    return torch.where(condition, then, otherwise)


def fill(
    layer: trt.IFillLayer, size: Tensor | None = None, alpha: Tensor | None = None, beta: Tensor | None = None
) -> Tensor:
    if layer.operation.name != "LINSPACE":
        raise ValueError(f"operation {layer.operation.name} is not known")
    dtype = DTYPES[layer.to_type.name]
    sizes = list(layer.shape) if size is None else size.tolist()
    alpha = torch.tensor(layer.alpha, dtype=dtype) if alpha is None else alpha
    beta = torch.tensor([layer.beta], dtype=dtype) if beta is None else beta
    check_types((torch.float32, *INTEGERS), alpha, beta)
    if len(beta) != len(sizes):
        raise ValueError(f"{len(beta)} steps for {len(sizes)} dimensions")
    out = alpha.expand(sizes)
    for axis, (step, count) in enumerate(zip(beta, sizes, strict=True)):
        out = out + (step * torch.arange(count, dtype=dtype)).view(-1, *[1] * (len(sizes) - axis - 1))
    return out


# Arithmetic

UNARY: dict[str, tuple[tuple[torch.dtype, ...], Callable[[Tensor], Tensor]]] = {
    "ABS": (NUMBERS, torch.abs),
    "NEG": (NUMBERS, torch.neg),
    "SIGN": (NUMBERS, torch.sign),
    "NOT": (BOOLS, torch.logical_not),
    "EXP": (FLOATS, torch.exp),
    "LOG": (FLOATS, torch.log),
    "SQRT": (FLOATS, torch.sqrt),
    "RECIP": (FLOATS, torch.reciprocal),
    "ERF": (FLOATS, torch.erf),
    "SIN": (FLOATS, torch.sin),
    "COS": (FLOATS, torch.cos),
    "TAN": (FLOATS, torch.tan),
    "CEIL": (FLOATS, torch.ceil),
    "FLOOR": (FLOATS, torch.floor),
    "ROUND": (FLOATS, torch.round),
    "ISINF": (FLOATS, torch.isinf),
    "ISNAN": (FLOATS, torch.isnan),
}


def unary(layer: trt.IUnaryLayer, x: Tensor) -> Tensor:
    types, operation = _known(UNARY, layer.op)
    check_types(types, x)
    return operation(*wide(x))


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _floor_divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.floor(a / b) if a.is_floating_point() else torch.div(a, b, rounding_mode="floor")


ELEMENTWISE: dict[str, tuple[tuple[torch.dtype, ...], Callable[[Tensor, Tensor], Tensor]]] = {
    "SUM": (NUMBERS, torch.add),
    "SUB": (NUMBERS, torch.sub),
    "PROD": (NUMBERS, torch.mul),
    "DIV": (NUMBERS, _divide),
    "FLOOR_DIV": (NUMBERS, _floor_divide),
    "MIN": (NUMBERS, torch.minimum),
    "MAX": (NUMBERS, torch.maximum),
    "POW": (FLOATS, torch.pow),
    "EQUAL": (NUMBERS, torch.eq),
    "LESS": (NUMBERS, torch.lt),
    "GREATER": (NUMBERS, torch.gt),
    "AND": (BOOLS, torch.logical_and),
    "OR": (BOOLS, torch.logical_or),
    "XOR": (BOOLS, torch.logical_xor),
}


def elementwise(layer: trt.IElementWiseLayer, a: Tensor, b: Tensor) -> Tensor:
    types, operation = _known(ELEMENTWISE, layer.op)
    check_types(types, a, b)
    check_ranks(a, b)
    return operation(*wide(a, b))


def _product(x: Tensor, axes: list[int], keep_dims: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keep_dims, dtype=x.dtype)
    return x


REDUCE: dict[str, tuple[tuple[torch.dtype, ...], Callable[[Tensor, list[int], bool], Tensor]]] = {
    "SUM": (NUMBERS, lambda x, axes, keep_dims: x.sum(axes, keep_dims, dtype=x.dtype)),
    "PROD": (NUMBERS, _product),
    "MAX": (NUMBERS, torch.amax),
    "MIN": (NUMBERS, torch.amin),
    "AVG": (FLOATS, torch.mean),
}


def reduce(layer: trt.IReduceLayer, x: Tensor) -> Tensor:
    types, operation = _known(REDUCE, layer.op)
    check_types(types, x)
    return operation(*wide(x), _axes(layer.axes), layer.keep_dims)


ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "RELU": torch.relu,
    "SIGMOID": torch.sigmoid,
    "TANH": torch.tanh,
    "GELU_ERF": lambda x: 0.5 * x * (1 + torch.erf(0.5**0.5 * x)),
    "GELU_TANH": lambda x: 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))),
}


def activation(layer: trt.IActivationLayer, x: Tensor) -> Tensor:
    check_types(FLOATS, x)
    return _known(ACTIVATION, layer.type)(*wide(x))


def matrix_multiply(layer: trt.IMatrixMultiplyLayer, a: Tensor, b: Tensor) -> Tensor:
    check_types(FLOATS, a, b)
    check_ranks(a, b)
    if "VECTOR" in (layer.op0.name, layer.op1.name):
        raise ValueError("operation VECTOR is not known")
    a, b = wide(a, b)
    a, b = (x.mT if op.name == "TRANSPOSE" else x for x, op in ((a, layer.op0), (b, layer.op1)))
    return a @ b


def einsum(layer: trt.IEinsumLayer, *tensors: Tensor) -> Tensor:
    check_types(FLOATS, *tensors)
    return torch.einsum(layer.equation, *wide(*tensors))


def softmax(layer: trt.ISoftMaxLayer, x: Tensor) -> Tensor:
    check_types(FLOATS, x)
    (axis,) = _axes(layer.axes)
    return x.float().softmax(axis)


def normalization(layer: trt.INormalizationLayer, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    check_types(FLOATS, x, scale, bias)
    check_ranks(x, scale, bias)
    if layer.num_groups != 1:
        raise ValueError(f"{layer.num_groups} groups are not known")
    axes = _axes(layer.axes)
    x, scale, bias = wide(x, scale, bias)
    centered = x - x.mean(axes, keepdim=True)
    variance = centered.square().mean(axes, keepdim=True)
    return centered / torch.sqrt(variance + layer.epsilon) * scale + bias


def dequantize(layer: trt.IDequantizeLayer, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """By a scale for the whole tensor [] or [1], one for each index of an axis [n], or one for each block."""
    check_types((torch.int8,), x)
    check_types(FLOATS, scale)
    if zero_point is not None and zero_point.any():
        raise ValueError("zero points other than 0 are not known")
    if scale.numel() == 1:
        scale = scale.reshape(())
    elif scale.ndim == 1:
        if layer.axis < 0 or x.shape[layer.axis] != len(scale):
            raise ValueError(f"{len(scale)} scales do not fit axis {layer.axis} of {tuple(x.shape)}")
        scale = scale.view(-1, *[1] * (x.ndim - layer.axis - 1))
    else:
        check_ranks(x, scale)
        for axis, (size, blocks) in enumerate(zip(x.shape, scale.shape, strict=True)):
            if size % blocks:
                raise ValueError(f"{blocks} blocks do not divide axis {axis} of {tuple(x.shape)}")
            scale = scale.repeat_interleave(size // blocks, dim=axis)
    return x.float() * scale.float()
