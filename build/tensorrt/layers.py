"""TensorRT's layers, written as arithmetic on tensors of a network that is being defined.

Networks are strongly typed: nothing is cast unless asked for, and the inputs of a layer have one dtype and one rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

import torch

from trtstream.errors import TrtstreamError

if TYPE_CHECKING:
    import tensorrt as trt

Rotation = tuple["Tensor", "Tensor"]
"""cos and sin [B, T, head_dim / 2] float32."""


class Layers:
    """Adds layers to a network definition.

    ``memory`` holds the tensors that its constants point to: they must live until the engine is built.
    """

    def __init__(self, trt: ModuleType, network: trt.INetworkDefinition) -> None:
        self.trt, self.network = trt, network
        self.memory: list[torch.Tensor] = []
        self.dtypes = {
            torch.float32: trt.float32,
            torch.float16: trt.float16,
            torch.bfloat16: trt.bfloat16,
            torch.int64: trt.int64,
            torch.int32: trt.int32,
            torch.int8: trt.int8,
        }
        self._scope = ""

    @contextmanager
    def named(self, scope: str) -> Iterator[None]:
        """Name the layers that are added in the block, for profilers and error messages."""
        outer, self._scope = self._scope, scope
        yield
        self._scope = outer

    def add(
        self, kind: str, *arguments: object, inputs: Mapping[int, Tensor] = MappingProxyType({}), **properties: Any
    ) -> Tensor:
        """The output of a new layer: ``add_{kind}`` of INetworkDefinition, with ``properties`` set on the layer.

        Raises TrtstreamError, with the ``last_error`` of the network's logger, if TensorRT refuses it.
        """
        layer = getattr(self.network, f"add_{kind}")(*map(_value, arguments))
        if layer is None:
            raise self._refused(kind)
        layer.name = f"{self._scope} {kind} {self.network.num_layers}"
        for name, value in properties.items():
            setattr(layer, name, _value(value))
        for index, tensor in inputs.items():
            layer.set_input(index, tensor.value)
        output = Tensor(self, layer.get_output(0))
        try:
            len(output.shape)  # TensorRT checks types and sizes when it is asked for the shape
        except RuntimeError:
            raise self._refused(kind) from None
        return output

    def _refused(self, kind: str) -> TrtstreamError:
        reason = getattr(self.network.builder.logger, "last_error", "its log says why")
        return TrtstreamError(f"TensorRT refuses the {kind} layer of {self._scope}: {reason}")

    def input(self, name: str, dtype: torch.dtype, shape: Sequence[int], dimensions: Sequence[str]) -> Tensor:
        """An input of the network; ``dimensions`` names its first sizes where they vary (-1)."""
        value = self.network.add_input(name, self.dtypes[dtype], shape)
        for axis, dimension in enumerate(dimensions):
            if shape[axis] == -1:
                value.set_dimension_name(axis, dimension)
        return Tensor(self, value)

    def mark_output(self, name: str, tensor: Tensor) -> None:
        tensor.value.name = name
        self.network.mark_output(tensor.value)

    def constant(self, value: torch.Tensor) -> Tensor:
        """A constant, which points to the memory of a contiguous tensor."""
        return self._constant(value, self.dtypes[value.dtype], value.shape)

    def dequantized(self, values: torch.Tensor, scales: torch.Tensor) -> Tensor:
        """A weight [out, in] in the dtype of its scales, as `trtstream.build.tensorrt.quantize` made it."""
        dtype = self.dtypes[scales.dtype]
        if values.dtype == torch.int8:
            return self.add("dequantize", self.constant(values), self.constant(scales), dtype, axis=0)
        stored = self._constant(values, self.trt.int4, (len(values), 2 * values.shape[1]))
        return self.add("dequantize", stored, self.constant(scales), dtype)  # the shape of the scales tells the groups

    def _constant(self, value: torch.Tensor, dtype: trt.DataType, shape: Sequence[int]) -> Tensor:
        value = value.contiguous()
        self.memory.append(value)
        return self.add("constant", tuple(shape), self.trt.Weights(dtype, value.data_ptr(), torch.Size(shape).numel()))

    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        return self.add("concatenation", [tensor.value for tensor in tensors], axis=axis)

    def kv_cache_update(self, cache: Tensor, update: Tensor, write_slots: Tensor) -> Tensor:
        """Write ``update`` [B, kv_heads, T, D] into a cache [B, kv_heads, C, D], in place, from ``write_slots`` on."""
        return self.add("kv_cache_update", cache, update, write_slots, self.trt.KVCacheMode.LINEAR)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Softmax of ``q k^T + mask``, times ``v``; nothing is scaled.

        q [B, heads, T, D], k and v [B, kv_heads, C, D], mask [B, heads, T, C]: all in one dtype.
        """
        # Decomposable: without a fused kernel (float32, a head_dim below 16) it takes others. With one, plans are the
        # same either way.
        properties: dict[str, Any] = {"mask": mask, "decomposable": True}
        softmax = self.trt.AttentionNormalizationOp.SOFTMAX
        if hasattr(self.network, "add_attention_v2"):
            return self.add("attention_v2", q, k, v, softmax, self.trt.CausalMaskKind.NONE, **properties)
        return self.add("attention", q, k, v, softmax, False, **properties)  # TensorRT 10


class Tensor:
    """A tensor of a network. Operators take another tensor or a number, and broadcast."""

    def __init__(self, layers: Layers, value: trt.ITensor) -> None:
        self.layers, self.value = layers, value

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes; -1 where they vary."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        return next(ours for ours, theirs in self.layers.dtypes.items() if theirs == self.value.dtype)

    def __add__(self, other: Tensor | float) -> Tensor:
        return self._elementwise(other, "SUM")

    def __sub__(self, other: Tensor | float) -> Tensor:
        return self._elementwise(other, "SUB")

    def __mul__(self, other: Tensor | float) -> Tensor:
        return self._elementwise(other, "PROD")

    def __truediv__(self, other: Tensor | float) -> Tensor:
        return self._elementwise(other, "DIV")

    def __lt__(self, other: Tensor | float) -> Tensor:
        return self._elementwise(other, "LESS")

    def __gt__(self, other: Tensor | float) -> Tensor:
        return self._elementwise(other, "GREATER")

    def __and__(self, other: Tensor) -> Tensor:
        return self._elementwise(other, "AND")

    def clamp(self, limit: float) -> Tensor:
        """Between ``-limit`` and ``limit``."""
        return self._elementwise(limit, "MIN")._elementwise(-limit, "MAX")

    def _elementwise(self, other: Tensor | float, operation: str) -> Tensor:
        if not isinstance(other, Tensor):
            other = self.layers.constant(torch.full((1,) * len(self.shape), other, dtype=self.dtype))
        return self.layers.add("elementwise", self, other, getattr(self.layers.trt.ElementWiseOperation, operation))

    def sqrt(self) -> Tensor:
        return self.layers.add("unary", self, self.layers.trt.UnaryOperation.SQRT)

    def activation(self, kind: str) -> Tensor:
        """``kind`` names one of TensorRT's ActivationType."""
        return self.layers.add("activation", self, getattr(self.layers.trt.ActivationType, kind))

    def mean(self, axis: int) -> Tensor:
        """Over one axis, which is kept with size 1."""
        return self.layers.add("reduce", self, self.layers.trt.ReduceOperation.AVG, 1 << axis, True)

    def layer_norm(self, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Over the last axis of x [N, E], with weight and bias [1, E]."""
        return self.layers.add("normalization_v2", self, weight, bias, 1 << 1, epsilon=eps)

    def where(self, yes: Tensor, no: Tensor) -> Tensor:
        """``yes`` where this tensor is true, else ``no``."""
        return self.layers.add("select", self, yes, no)

    def cast(self, dtype: torch.dtype) -> Tensor:
        return self if self.dtype == dtype else self.layers.add("cast", self, self.layers.dtypes[dtype])

    def sizes(self) -> Tensor:
        """The shape as a tensor (int64)."""
        return self.layers.add("shape", self)

    def reshape(self, *sizes: int) -> Tensor:
        """0 copies the size of the same axis, and one size may be -1."""
        return self.layers.add("shuffle", self, reshape_dims=sizes)

    def reshape_to(self, sizes: Tensor) -> Tensor:
        return self.layers.add("shuffle", self, inputs={1: sizes})

    def transpose(self, *axes: int) -> Tensor:
        return self.layers.add("shuffle", self, first_transpose=axes)

    def matmul_transposed(self, other: Tensor) -> Tensor:
        """[..., n, k] times the transpose of ``other`` [..., m, k]: [..., n, m]."""
        operation = self.layers.trt.MatrixOperation
        return self.layers.add("matrix_multiply", self, operation.NONE, other, operation.TRANSPOSE)

    def gather(self, indices: Tensor, axis: int) -> Tensor:
        """``axis`` is replaced by the axes of ``indices``."""
        return self.layers.add("gather", self, indices, axis)

    def unbind(self, axis: int) -> list[Tensor]:
        """The slices along an axis, without it."""
        indices = torch.arange(self.shape[axis], dtype=torch.int32)
        return [self.gather(self.layers.constant(index), axis) for index in indices]

    def narrow(self, axis: int, start: int, length: int) -> Tensor:
        """``length`` indices of an axis, from ``start``."""
        return self.layers.add("slice", self, (start,), (length,), (1,), axes=(axis,))

    def split(self, sizes: Sequence[int], axis: int) -> list[Tensor]:
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [self.narrow(axis, start, size) for start, size in zip(starts, sizes, strict=True)]

    def pad(self, axis: int, length: int) -> Tensor:
        """Zeros at the end of ``axis``, up to ``length``."""
        fill = self.layers.trt.SampleMode.FILL
        return self.layers.add("slice", self, (0,), (length,), (1,), axes=(axis,), mode=fill)

    def rotate(self, rotation: Rotation) -> Tensor:
        """Rotate the pairs (i, i + D / 2) of x [B, heads, T, D] (float32)."""
        interleaved, dimensions = False, 0  # 0: all
        return self.layers.add("rotary_embedding", self, *rotation, interleaved, dimensions)


def _value(argument: object) -> object:
    return argument.value if isinstance(argument, Tensor) else argument
