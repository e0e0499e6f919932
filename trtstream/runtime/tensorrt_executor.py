"""The last step of the TensorRT targets: TensorRT's engine, and an execution context for each kind of call.

Tests without a GPU run everything above this file. The file itself has not been run yet, because TensorRT deserializes
engines only on a GPU.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import torch

from trtstream.engine_dir import ENGINE, EngineConfig
from trtstream.errors import TrtstreamError
from trtstream.plugins.tensorrt_io import DECODE, LOGITS, PROFILES, updated
from trtstream.plugins.tensorrt_library import load_tensorrt, new_logger
from trtstream.progress import progress_bar
from trtstream.runtime.tensorrt import Call, TensorrtBackend
from trtstream.runtime.tensorrt_runtime_cache import read_runtime_cache, runtime_cache_path, save_runtime_cache

if TYPE_CHECKING:
    import tensorrt as trt

T = TypeVar("T")


class TensorrtExecutor:
    """See `trtstream.runtime.tensorrt.Executor`.

    A captured CUDA graph depends on its context as that was at the capture, so each batch size has its own context. All
    contexts share one memory for activations: they never run at the same time.
    """

    def __init__(self, module: ModuleType, path: Path, device: torch.device) -> None:
        """Read the engine file at ``path``; ``module`` is ``tensorrt`` or ``tensorrt_rtx``.

        Raises TrtstreamError if TensorRT refuses it, torch.OutOfMemoryError if there is too little memory to run it.
        """
        self.device = device
        self._module = module
        self._path = path
        self._logger = new_logger(module)
        self._runtime = module.Runtime(self._logger)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise TrtstreamError(
                f"{path} is refused by {module.__name__} {module.__version__} on {torch.cuda.get_device_name(device)}: "
                f"{self._logger.last_error}; build it again with this library, or for target cuda"
            )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._updated = {name: updated(name) for name in names if updated(name) in names}
        for name, output in self._updated.items():
            self._check_aliased(name, output)
        self._activations = torch.empty(self._engine.device_memory_size_v2, dtype=torch.uint8, device=device)
        self._stream = torch.cuda.Stream(device)
        self._last_context: trt.IExecutionContext | None = None
        self._runtime_cache: trt.IRuntimeCache | None = None  # TensorRT-RTX's, of all contexts

    def new_call(self, profile: str) -> Call:
        context = self._new_context(profile)
        shapes: dict[str, torch.Size] = {}

        def call(tensors: Mapping[str, torch.Tensor]) -> None:
            for name, tensor in tensors.items():
                # Shapes only where they change: TensorRT may have to process a new one, which no capture allows.
                if name != LOGITS and shapes.get(name) != tensor.shape:
                    self._check(context.set_input_shape(name, tuple(tensor.shape)), f"take this shape for {name}")
                    shapes[name] = tensor.shape
                for bound in {name, self._updated.get(name, name)}:
                    self._check(context.set_tensor_address(bound, tensor.data_ptr()), f"bind {bound}")
            with self._side_stream() as stream:
                self._check(context.execute_async_v3(stream.cuda_stream), f"run a {profile} call")
            self._last_context = context

        return call

    def can_capture(self) -> bool:
        # TensorRT-RTX has a method for it; TensorRT captures every network without loops or conditions.
        is_capturable = getattr(self._last_context, "is_stream_capturable", None)
        return is_capturable is None or is_capturable(torch.cuda.current_stream().cuda_stream)

    def save_runtime_cache(self) -> None:
        """Keep what the library has compiled by now for the next start, if it compiles anything."""
        if self._runtime_cache is not None:
            save_runtime_cache(self._runtime_cache_path(), bytes(memoryview(self._runtime_cache.serialize())))

    def _runtime_cache_path(self) -> Path:
        capability = torch.cuda.get_device_capability(self.device)
        return runtime_cache_path(self._path, self._module.__version__, capability)

    def _check_aliased(self, name: str, output: str) -> None:
        """Raise TrtstreamError unless TensorRT updates the cache ``name`` in place; early versions cannot say."""
        aliased_input = getattr(self._engine, "get_aliased_input_tensor", None)
        if aliased_input is not None and aliased_input(output) != name:
            raise TrtstreamError(
                f"{self._path}: TensorRT does not update {name} in place, as {output} is another memory's; "
                "build the engine again"
            )

    def _new_context(self, profile: str) -> trt.IExecutionContext:
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._module.ExecutionContextAllocationStrategy.USER_MANAGED)
        if hasattr(config, "create_runtime_cache"):
            if self._runtime_cache is None:
                self._runtime_cache = config.create_runtime_cache()
                read_runtime_cache(self._runtime_cache_path(), self._runtime_cache.deserialize)
            self._check(config.set_runtime_cache(self._runtime_cache), "take a runtime cache")
        if profile == DECODE and hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # TensorRT-RTX compiles kernels for the shapes it meets. By default it does so in the background, which
            # suits prefill's many lengths; but a captured graph would keep the slow kernels that run in the meantime.
            strategies = self._module.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        context = self._check(self._engine.create_execution_context(config), f"make a context for {profile} calls")
        context.set_device_memory(self._activations.data_ptr(), self._activations.numel())
        with self._side_stream() as stream:
            chosen = context.set_optimization_profile_async(PROFILES.index(profile), stream.cuda_stream)
            self._check(chosen, f"take the profile {profile}")
        return context

    @contextmanager
    def _side_stream(self) -> Iterator[torch.cuda.Stream]:
        """torch's current stream, or another in its place: on the default stream TensorRT waits for the GPU."""
        current = torch.cuda.current_stream(self.device)
        if current != torch.cuda.default_stream(self.device):
            yield current
            return
        self._stream.wait_stream(current)
        yield self._stream
        current.wait_stream(self._stream)

    def _check(self, result: T, action: str) -> T:
        """``result``; raises TrtstreamError if it is None or False, by which TensorRT says that ``action`` failed."""
        if result is None or result is False:
            raise TrtstreamError(f"{self._path}: TensorRT cannot {action}: {self._logger.last_error}")
        return result


def load(folder: Path, config: EngineConfig) -> TensorrtBackend:
    """See `trtstream.targets.Target`."""
    device = torch.device("cuda", torch.cuda.current_device())
    executor = TensorrtExecutor(load_tensorrt(config.target), folder / ENGINE, device)
    with progress_bar("Capturing CUDA graphs") as progress:
        backend = TensorrtBackend(config.pretrained_config, config.build_config, config.target, executor, progress)
    executor.save_runtime_cache()
    return backend
