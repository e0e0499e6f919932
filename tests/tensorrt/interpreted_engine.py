"""Engines of the TensorRT targets without TensorRT: the network that is built, run by the interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Mapping

import tensorrt_rtx as trt
import torch

from tests.tensorrt.interpreter import Interpreter
from trtstream.build.checkpoint import Checkpoint
from trtstream.build.tensorrt.network import define_network
from trtstream.plugins.tensorrt_io import LOGITS, LOGITS_ROWS, TOKENS, input_shapes, largest_call
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.runtime.tensorrt import Call, TensorrtBackend
from trtstream.settings import BuildConfig

TARGET = "tensorrt-rtx"


class InterpreterExecutor:
    """See `trtstream.runtime.tensorrt.Executor`. Refuses tensors that TensorRT would refuse."""

    device = torch.device("cpu")

    def __init__(self, checkpoint: Checkpoint, build: BuildConfig) -> None:
        self._model, self._build = checkpoint.model, build
        self._builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
        network = self._builder.create_network(0)
        dtype = getattr(torch, build.dtype)
        weights = {name: checkpoint.tensor(name).to(dtype) for name in checkpoint.tensor_names()}
        self._memory = define_network(trt, network, checkpoint.model, build, TARGET, weights)
        self._interpreter = Interpreter(trt, network)

    def new_call(self, profile: str) -> Call:
        largest = largest_call(self._build, profile)

        def call(tensors: Mapping[str, torch.Tensor]) -> None:
            inputs = dict(tensors)
            logits = inputs.pop(LOGITS)
            sizes = *inputs[TOKENS].shape, len(inputs[LOGITS_ROWS])
            assert all(1 <= size <= most for size, most in zip(sizes, largest, strict=True))
            shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
            assert shapes == input_shapes(self._model, self._build, TARGET, *sizes)
            assert all(tensor.is_contiguous() for tensor in tensors.values())
            logits.copy_(self._interpreter.run(inputs)[LOGITS])

        return call

    def can_capture(self) -> bool:
        return False


def interpreted_engine(checkpoint: Checkpoint, build: BuildConfig) -> StreamingEngine:
    """The whole runtime, except TensorRT's contexts, over the network of ``checkpoint``."""
    backend = TensorrtBackend(checkpoint.model, build, TARGET, InterpreterExecutor(checkpoint, build))
    return StreamingEngine(checkpoint.model, build, backend)
