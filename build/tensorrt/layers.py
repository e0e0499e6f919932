"""TensorRT's layers, written as arithmetic on tensors of a network that is being defined.

Networks are strongly typed: nothing is cast unless asked for, and what meets in a layer has one dtype and one rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from trtstream.errors import TrtstreamError

if TYPE_CHECKING:
    import tensorrt as trt

Rotation = tuple["Tensor", "Tensor"]
"""cos and sin [B, T, head_dim / 2] float32."""


class Layers:
    """Adds layers to a network definition.

    ``memory`` is what its constants point to: it must live until the engine is built.
    """

    def __init__(self, trt: ModuleType, network: trt.INetworkDefinition) -> None:
        self.trt, self.network = trt, network
        self.memory: list[torch.Tensor] = []
        self.scope = "network"
        self.dtypes = {
            torch.float32: trt.float32,
            torch.float16: trt.float16,
            torch.bfloat16: trt.bfloat16,
            torch.int64: trt.int64,
            torch.int32: trt.int32,
            torch.int8: trt.int8,
        }

    @contextmanager
    def named(self, scope: str) -> Iterator[None]:
        """Name the layers that are added meanwhile after what they compute, for profilers and error messages."""
        outer, self.scope = self.scope, scope
        yield
        self.scope = outer

    def added(self, layer: trt.ILayer | None) -> Tensor:
        """The output of a layer just added; TrtstreamError if TensorRT refuses it (its logger has the reason)."""
        try:
            layer.name = f"{self.scope} {self.network.num_layers}"
            output = Tensor(self, layer.get_output(0))
            len(output.shape)
        except (AttributeError, RuntimeError):
            raise TrtstreamError(f"TensorRT refuses a layer of {self.scope}") from None
        return output

    def input(self, name: str, dtype: torch.dtype, shape: Sequence[int], dimensions: Sequence[str]) -> Tensor:
        """An input of the network; of its first sizes, those that vary (-1) have the names ``dimensions``."""
        value = self.network.add_input(name, self.dtypes[dtype], shape)
        for axis, dimension in enumerate(dimensions):
            if shape[axis] == -1:
                value.set_dimension_name(axis, dimension)
        return Tensor(self, value)

    def mark_output(self, name: str, tensor: Tensor) -> None:
        tensor.value.name = name
        self.network.mark_output(tensor.value)

    def constant(self, value: torch.Tensor) -> Tensor:
        """A constant; the values of a contiguous tensor are not copied."""
        return self._constant(value.contiguous(), self.dtypes[value.dtype], value.shape)

    def dequantized(self, values: torch.Tensor, scales: torch.Tensor) -> Tensor:
        """A weight [out, in] as `trtstream.build.tensorrt.quantize` made it, in the dtype of its scales."""
        if values.dtype == torch.int8:
            stored = self.constant(values)
        else:
            stored = self._constant(values.contiguous(), self.trt.int4, (len(values), 2 * values.shape[1]))
        layer = self.network.add_dequantize(stored.value, self.constant(scales).value, self.dtypes[scales.dtype])
        if scales.ndim == 1:
            layer.axis = 0
        return self.added(layer)

    def _constant(self, value: torch.Tensor, dtype: trt.DataType, shape: Sequence[int]) -> Tensor:
        self.memory.append(value)
        count = torch.Size(shape).numel()
        weights = self.trt.Weights(dtype, value.data_ptr(), count)
        return self.added(self.network.add_constant(tuple(shape), weights))

    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        layer = self.network.add_concatenation([tensor.value for tensor in tensors])
        layer.axis = axis
        return self.added(layer)

    def kv_cache_update(self, cache: Tensor, update: Tensor, write_slots: Tensor) -> Tensor:
        """Write ``update`` [B, kv_heads, T, D] into a cache [B, kv_heads, C, D], in place, from ``write_slots`` on."""
        linear = self.trt.KVCacheMode.LINEAR
        return self.added(self.network.add_kv_cache_update(cache.value, update.value, write_slots.value, linear))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Softmax of ``q k^T + mask``, times ``v``: fused.

        q [B, heads, T, D], k and v [B, kv_heads, C, D], mask [B, heads, T, C]: all in one dtype.
        """
        softmax = self.trt.AttentionNormalizationOp.SOFTMAX
        if hasattr(self.network, "add_attention_v2"):
            causal = self.trt.CausalMaskKind.NONE
            layer = self.network.add_attention_v2(q.value, k.value, v.value, softmax, causal)
        else:  # TensorRT 10.15
            layer = self.network.add_attention(q.value, k.value, v.value, softmax, False)
        layer.mask = mask.value
        # Where there is a fused kernel (16 bits, head_dim 16 and more) it is taken all the same: plans are identical.
        layer.decomposable = True
        return self.added(layer)


class Tensor:
    """A tensor of a network. Operators take another tensor or a number, and broadcast."""

    def __init__(self, layers: Layers, value: trt.ITensor) -> None:
        self.layers, self.value = layers, value

    @property
    def shape(self) -> tuple[int, ...]:
        """-1 stands for what varies."""
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

    def _elementwise(self, other: Tensor | float, operation: str) -> Tensor:
        if not isinstance(other, Tensor):
            other = self.layers.constant(torch.full((1,) * len(self.shape), other, dtype=self.dtype))
        kind = getattr(self.layers.trt.ElementWiseOperation, operation)
        return self.layers.added(self.layers.network.add_elementwise(self.value, other.value, kind))

    def sqrt(self) -> Tensor:
        return self.layers.added(self.layers.network.add_unary(self.value, self.layers.trt.UnaryOperation.SQRT))

    def activation(self, kind: str) -> Tensor:
        """``kind`` names one of TensorRT's ActivationType."""
        kind = getattr(self.layers.trt.ActivationType, kind)
        return self.layers.added(self.layers.network.add_activation(self.value, kind))

    def mean(self, axis: int) -> Tensor:
        """Over one axis, which stays with size 1."""
        average = self.layers.trt.ReduceOperation.AVG
        return self.layers.added(self.layers.network.add_reduce(self.value, average, 1 << axis, True))

    def layer_norm(self, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Over the last axis of x [N, E], with weight and bias [1, E]."""
        layer = self.layers.network.add_normalization_v2(self.value, weight.value, bias.value, 1 << 1)
        layer.epsilon = eps
        return self.layers.added(layer)

    def where(self, yes: Tensor, no: Tensor) -> Tensor:
        """This tensor is the condition."""
        return self.layers.added(self.layers.network.add_select(self.value, yes.value, no.value))

    def cast(self, dtype: torch.dtype) -> Tensor:
        if self.dtype == dtype:
            return self
        return self.layers.added(self.layers.network.add_cast(self.value, self.layers.dtypes[dtype]))

    def sizes(self) -> Tensor:
        """The shape as a tensor (int64)."""
        return self.layers.added(self.layers.network.add_shape(self.value))

    def reshape(self, *sizes: int) -> Tensor:
        """0 copies the size of the same axis, and one size may be -1."""
        layer = self.layers.network.add_shuffle(self.value)
        layer.reshape_dims = sizes
        return self.layers.added(layer)

    def reshape_like(self, sizes: Tensor) -> Tensor:
        layer = self.layers.network.add_shuffle(self.value)
        layer.set_input(1, sizes.value)
        return self.layers.added(layer)

    def transpose(self, *axes: int) -> Tensor:
        layer = self.layers.network.add_shuffle(self.value)
        layer.first_transpose = axes
        return self.layers.added(layer)

    def matmul_transposed(self, other: Tensor) -> Tensor:
        """[..., n, k] times the transpose of ``other`` [..., m, k]: [..., n, m]."""
        none, transpose = self.layers.trt.MatrixOperation.NONE, self.layers.trt.MatrixOperation.TRANSPOSE
        return self.layers.added(self.layers.network.add_matrix_multiply(self.value, none, other.value, transpose))

    def gather(self, indices: Tensor, axis: int) -> Tensor:
        """``axis`` is replaced by the axes of ``indices``."""
        return self.layers.added(self.layers.network.add_gather(self.value, indices.value, axis))

    def unbind(self, axis: int) -> list[Tensor]:
        """The slices along an axis, without it."""
        count = self.shape[axis]
        return [self.gather(self.layers.constant(torch.tensor(i, dtype=torch.int32)), axis) for i in range(count)]

    def narrow(self, axis: int, start: int, length: int) -> Tensor:
        """``length`` indices of an axis from ``start`` on."""
        return self.layers.added(self._slice(axis, start, length))

    def split(self, sizes: Sequence[int], axis: int) -> list[Tensor]:
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [self.narrow(axis, start, size) for start, size in zip(starts, sizes, strict=True)]

    def pad(self, axis: int, length: int) -> Tensor:
        """Zeros behind, up to ``length``."""
        layer = self._slice(axis, 0, length)
        layer.mode = self.layers.trt.SampleMode.FILL
        return self.layers.added(layer)

    def _slice(self, axis: int, start: int, length: int) -> trt.ISliceLayer:
        layer = self.layers.network.add_slice(self.value, (start,), (length,), (1,))
        layer.axes = (axis,)
        return layer

    def rotate(self, rotation: Rotation) -> Tensor:
        """Rotate the pairs (i, i + D / 2) of x [B, heads, T, D] (float32)."""
        cos, sin = rotation
        layer = self.layers.network.add_rotary_embedding(self.value, cos.value, sin.value, False, 0)
        return self.layers.added(layer)
