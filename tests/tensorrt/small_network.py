"""A TensorRT network of a few layers, with tensors for its inputs, for the interpreter and for the builder."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from tests.tensorrt.constants import DTYPES
from tests.tensorrt.interpreter import Interpreter

if TYPE_CHECKING:
    import tensorrt_rtx as trt

TYPE_NAMES = {dtype: name for name, dtype in reversed(DTYPES.items()) if name != "INT4"}


class SmallNetwork:
    """``net`` is the INetworkDefinition; tensors of inputs are in ``tensors``, by name."""

    def __init__(self, trt: ModuleType) -> None:
        self.trt = trt
        self.builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
        self.net = self.builder.create_network(0)
        self.tensors: dict[str, torch.Tensor] = {}
        self._memory: list[torch.Tensor] = []

    def type(self, dtype: torch.dtype) -> trt.DataType:
        return getattr(self.trt.DataType, TYPE_NAMES[dtype])

    def input(self, name: str, tensor: torch.Tensor, dynamic: tuple[int, ...] = ()) -> trt.ITensor:
        """An input of the tensor's type and shape, but of any size in the ``dynamic`` dimensions."""
        self.tensors[name] = tensor
        shape = [-1 if axis in dynamic else size for axis, size in enumerate(tensor.shape)]
        return self.net.add_input(name, self.type(tensor.dtype), shape)

    def constant(self, tensor: torch.Tensor) -> trt.ITensor:
        tensor = tensor.contiguous()
        self._memory.append(tensor)
        weights = self.trt.Weights(self.type(tensor.dtype), tensor.data_ptr(), tensor.numel())
        return self.net.add_constant(tuple(tensor.shape), weights).get_output(0)

    def int4(self, numbers: torch.Tensor) -> trt.ITensor:
        """A constant of int4 from numbers from -8 to 7, two in a byte, the first one in its low half."""
        low, high = (numbers.flatten() % 16).view(-1, 2).unbind(1)
        packed = (low + 16 * high).to(torch.uint8)
        self._memory.append(packed)
        weights = self.trt.Weights(self.trt.DataType.INT4, packed.data_ptr(), numbers.numel())
        return self.net.add_constant(tuple(numbers.shape), weights).get_output(0)

    def sizes(self, *sizes: int) -> trt.ITensor:
        return self.constant(torch.tensor(sizes))

    def output(self, name: str, layer: trt.ILayer) -> trt.ITensor:
        tensor = layer.get_output(0)
        tensor.name = name
        self.net.mark_output(tensor)
        return tensor

    def run(self) -> dict[str, torch.Tensor]:
        return Interpreter(self.trt, self.net).run(self.tensors)

    def builds(self) -> bool:
        """Whether TensorRT's builder takes the network."""
        config, profile = self.builder.create_builder_config(), self.builder.create_optimization_profile()
        for index in range(self.net.num_inputs):
            tensor = self.net.get_input(index)
            size = tuple(self.tensors[tensor.name].shape)
            profile.set_shape(tensor.name, size, size, size)
        config.add_optimization_profile(profile)
        return self.builder.build_serialized_network(self.net, config) is not None


def check(
    network: SmallNetwork, expected: dict[str, torch.Tensor], roundings: int = 1, scale: float | None = None
) -> None:
    """The builder takes the network, and the interpreter's output is as expected, up to roundings to its type.

    Errors are relative to each number or, of numbers whose terms cancel, to a ``scale`` of the terms.
    """
    assert network.builds()
    outputs = network.run()
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        out = outputs[name]
        if not out.is_floating_point():
            assert out.dtype == value.dtype, name
            assert torch.equal(out, value), name
            continue
        error = max(torch.finfo(out.dtype).eps / 2 * roundings, 1e-5)
        atol = 1e-6 if scale is None else error * scale
        named = partial("{}: {}".format, name)
        torch.testing.assert_close(out.double(), value.double(), rtol=error, atol=atol, equal_nan=True, msg=named)
