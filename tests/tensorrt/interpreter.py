"""An interpreter of TensorRT networks: evaluates, in torch on the CPU, the very object that is handed to the builder.

It is written from TensorRT's documentation, not from our networks, so that a network's arithmetic can be compared with
our references on a machine without a GPU. It rounds at every layer; TensorRT fuses layers and picks kernels that round
elsewhere. No GPU has been compared with it yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from tests.tensorrt import attention_functions, layer_functions
from tests.tensorrt.constants import DTYPES, read_constant

if TYPE_CHECKING:
    import tensorrt_rtx as trt

# By the name of a trt.LayerType.
FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "ACTIVATION": layer_functions.activation,
    "ATTENTION_INPUT": attention_functions.attention,
    "ATTENTION_OUTPUT": layer_functions.identity,
    "CAST": layer_functions.cast,
    "CONCATENATION": layer_functions.concatenation,
    "DEQUANTIZE": layer_functions.dequantize,
    "EINSUM": layer_functions.einsum,
    "ELEMENTWISE": layer_functions.elementwise,
    "FILL": layer_functions.fill,
    "GATHER": layer_functions.gather,
    "IDENTITY": layer_functions.identity,
    "KV_CACHE_UPDATE": attention_functions.kv_cache_update,
    "MATRIX_MULTIPLY": layer_functions.matrix_multiply,
    "NORMALIZATION": layer_functions.normalization,
    "REDUCE": layer_functions.reduce,
    "ROTARY_EMBEDDING": attention_functions.rotary_embedding,
    "SELECT": layer_functions.select,
    "SHAPE": layer_functions.shape,
    "SHUFFLE": layer_functions.shuffle,
    "SLICE": layer_functions.slice_,
    "SOFTMAX": layer_functions.softmax,
    "SQUEEZE": layer_functions.squeeze,
    "UNARY": layer_functions.unary,
    "UNSQUEEZE": layer_functions.unsqueeze,
}


@dataclass(frozen=True, eq=False)
class Step:
    """One layer of the network, its properties readable, and its tensors."""

    kind: str
    layer: trt.ILayer
    inputs: list[trt.ITensor | None]
    output: trt.ITensor

    def __str__(self) -> str:
        return f"{self.kind} {self.layer.name!r}"

    @cached_property
    def inferred(self) -> tuple[torch.dtype, tuple[int, ...]]:
        """The output's type and shape, for which TensorRT takes longer than the layer's function."""
        return DTYPES[self.output.dtype.name], tuple(self.output.shape)

    def compute(self, tensors: list[torch.Tensor | None]) -> torch.Tensor:
        """Raises ValueError for inputs that the layer refuses, and where TensorRT infers another type or shape."""
        try:
            out = FUNCTIONS[self.kind](self.layer, *tensors)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{self}: {error}") from error
        dtype, shape = self.inferred
        if out.dtype == torch.float32 and dtype in layer_functions.FLOATS:
            out = out.to(dtype)
        if out.dtype != dtype or not _fits(out.shape, shape):
            raise ValueError(f"{self}: gives {out.dtype} {tuple(out.shape)}; TensorRT infers {dtype} {shape}")
        return out


class Interpreter:
    """``network``, of the module ``trt`` (tensorrt or tensorrt_rtx), as a function of its inputs.

    The network must be complete, and the memory of its constants must stay as it is. Raises ValueError for a layer that
    is not known, and for a KV cache of which the result would not be defined.
    """

    def __init__(self, trt: ModuleType, network: trt.INetworkDefinition) -> None:
        self._inputs = [network.get_input(index) for index in range(network.num_inputs)]
        self._outputs = [network.get_output(index) for index in range(network.num_outputs)]
        self._constants: dict[trt.ITensor, torch.Tensor] = {}
        steps = []
        for step in _steps(trt, network):
            if step.kind == "CONSTANT":
                self._constants[step.output] = read_constant(step.layer)
            elif step.kind in FUNCTIONS:
                steps.append(step)
            else:
                raise ValueError(f"{step}: this type of layer is not known")
        self._steps = _in_order(steps)
        _check_caches(self._steps, self._inputs)
        self._last_uses = _last_uses(self._steps, {*self._inputs, *self._outputs, *self._constants})

    def run(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The network's outputs by name, of a tensor for each of its inputs by name.

        The tensor of a KV cache is changed in place, and is itself the output of its update. Raises ValueError for a
        tensor that is missing, unknown or not of its input's type and shape, and for what a layer does not take.
        """
        _check_tensors(self._inputs, tensors)
        values = self._constants | {tensor: tensors[tensor.name] for tensor in self._inputs}
        with torch.no_grad():
            for step, last_uses in zip(self._steps, self._last_uses, strict=True):
                values[step.output] = step.compute([None if x is None else values[x] for x in step.inputs])
                for tensor in last_uses:
                    del values[tensor]
        return {tensor.name: values[tensor] for tensor in self._outputs}


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    """Whether a shape is the declared one, in which -1 is any size."""
    return len(shape) == len(declared) and all(b in (-1, a) for a, b in zip(shape, declared, strict=True))


def _steps(trt: ModuleType, network: trt.INetworkDefinition) -> list[Step]:
    # get_layer gives a plain ILayer: SOFTMAX's properties are those of its class, ISoftMaxLayer.
    classes = {name.upper(): getattr(trt, name) for name in dir(trt)}
    steps = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = layer.type.name  # before the class is set: an activation's own type is which one it is
        layer.__class__ = classes.get(f"I{kind.replace('_', '')}LAYER", layer.__class__)
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        steps.append(Step(kind, layer, inputs, layer.get_output(0)))
    return steps


def _in_order(steps: list[Step]) -> list[Step]:
    """The network's order, except that a layer whose input is a later one's output comes after that one."""
    producers = {step.output: step for step in steps}
    ordered: dict[Step, None] = {}

    def add(step: Step) -> None:
        if step not in ordered:
            for tensor in step.inputs:
                if tensor in producers:
                    add(producers[tensor])
            ordered[step] = None

    for step in steps:
        add(step)
    return list(ordered)


def _last_uses(steps: list[Step], kept: set[trt.ITensor]) -> list[list[trt.ITensor]]:
    """For each step, the tensors that no later one needs."""
    last = {tensor: index for index, step in enumerate(steps) for tensor in (step.output, *step.inputs)}
    last_uses = [[] for _ in steps]
    for tensor, index in last.items():
        if tensor is not None and tensor not in kept:
            last_uses[index].append(tensor)
    return last_uses


def _check_caches(steps: list[Step], inputs: list[trt.ITensor]) -> None:
    """A cache is a network input, is updated once, and is read through its update only, which is a network output."""
    updates: dict[trt.ITensor, Step] = {}
    for step in steps:
        if step.kind == "KV_CACHE_UPDATE":
            cache = step.inputs[0]
            if cache not in inputs:
                raise ValueError(f"{step}: its cache {cache.name!r} is not a network input")
            if not step.output.is_network_output:
                raise ValueError(f"{step}: its output is not a network output")
            if cache in updates:
                raise ValueError(f"{step}: its cache {cache.name!r} is updated by {updates[cache]} already")
            updates[cache] = step
    for step in steps:
        for tensor in step.inputs:
            if tensor in updates and step is not updates[tensor] and step.kind != "SHAPE":
                raise ValueError(
                    f"{step}: reads {tensor.name!r} as well as its update, in an order that is not defined"
                )


def _check_tensors(inputs: list[trt.ITensor], tensors: Mapping[str, torch.Tensor]) -> None:
    names = [tensor.name for tensor in inputs]
    missing, unknown = sorted(set(names) - set(tensors)), sorted(set(tensors) - set(names))
    if missing or unknown:
        raise ValueError(f"missing inputs {missing}, unknown inputs {unknown}; the network takes {names}")
    sizes: dict[str, tuple[int, str]] = {}
    for tensor in inputs:
        name, given, shape = tensor.name, tensors[tensor.name], tuple(tensor.shape)
        dtype = DTYPES[tensor.dtype.name]
        if given.dtype != dtype or not _fits(given.shape, shape):
            raise ValueError(f"{name} is {given.dtype} {tuple(given.shape)}, not {dtype} {shape}")
        for axis, size in enumerate(given.shape):
            # A dynamic first dimension that has no name of its own is the batch.
            symbol = tensor.get_dimension_name(axis) or ("batch" if axis == 0 and shape[0] == -1 else None)
            if symbol is not None and size != sizes.setdefault(symbol, (size, name))[0]:
                known, where = sizes[symbol]
                raise ValueError(f"{name} has {symbol} {size}, but {where} has {known}")
