"""The kernels of an engine's calls, without running them: counted for the roofline, compiled before they are measured.

The engine's own code runs on tensors without memory (torch's device ``meta``). A dispatch mode sees each operator of
torch, and the launches of our kernels are intercepted, so that nothing here repeats what the code does.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from benchmarks.models import RandomCheckpoint, quantized
from trtstream.plugins import cuda_decode, cuda_grid, cuda_quantized
from trtstream.plugins.cuda_prefill import launch_prefill
from trtstream.plugins.cuda_rotation import launch_rotation
from trtstream.plugins.quantized_linear import linear_on_gpu
from trtstream.runtime.cuda import CudaBackend
from trtstream.runtime.decoder import DecoderWeights, collect_weights
from trtstream.settings import BuildConfig, ModelConfig

META = torch.device("meta")
COMPILING_SECONDS = 150  # then the measurements begin, and compile what is left


class Engine(NamedTuple):
    """An engine of the ``cuda`` target by its sizes; its weights are ``int8``, ``int4``, or in the engine's dtype."""

    model: ModelConfig
    build: BuildConfig
    quantization: str | None = None


def meta_weights(engine: Engine) -> DecoderWeights:
    """The engine's weights without memory."""
    checkpoint, dtype = RandomCheckpoint(engine.model, torch.float32, META), getattr(torch, engine.build.dtype)
    names = set(checkpoint.tensor_names())
    weights = collect_weights(
        engine.model, names, lambda name: checkpoint.blank_tensor(name).to(META, dtype), pack=False
    )
    return quantized(weights, engine.quantization) if engine.quantization else weights


Launch = Callable[..., object]
"""Called in place of a launch: the kernel, its arguments, and by name its constants, ``grid`` and ``warmup``."""


class _Operators(TorchDispatchMode):
    """Calls ``seen`` with the name of each operator that launches a kernel, and launches our kernels for ours."""

    def __init__(self, seen: Callable[[str], None]) -> None:
        super().__init__()
        self._seen = seen
        ours = torch.ops.trtstream
        self._ours: dict[Any, Callable[..., torch.Tensor]] = {
            ours.decode_attention.default: cuda_decode.launch_decode,
            ours.chunk_attention.default: launch_prefill,
            ours.step_rotation.default: launch_rotation,
            ours.quantized_linear.default: self._quantized_linear,
        }

    def _quantized_linear(self, *operands: Any) -> torch.Tensor:
        with self:  # its dequantizing is seen
            return linear_on_gpu(*operands)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._ours:
            return self._ours[func](*args, **kwargs or {})
        result = func(*args, **kwargs or {})
        allocates = func.overloadpacket.__name__ in ("empty", "new_empty", "empty_like", "empty_strided")
        # ``to`` counts as a view, and is one where the dtype stays.
        is_view = func.is_view and (isinstance(result, list | tuple) or result.dtype == args[0].dtype)
        if not (allocates or is_view):
            self._seen(str(func.overloadpacket))
        return result


@contextmanager
def intercepted(launch: Launch, operator: Callable[[str], None], multiprocessors: int) -> Iterator[None]:
    """Within it, engines on ``meta`` call ``launch`` for our kernels and ``operator`` for torch's."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(cuda_grid, "multiprocessors", lambda device: multiprocessors))
        for kind in {type(kernel) for kernel in (cuda_decode.decode_kernel, cuda_quantized.int8_kernel)}:
            stack.enter_context(patch.object(kind, "run", launch))  # compiled kernels', or in tests the interpreter's
        stack.enter_context(torch.inference_mode())
        stack.enter_context(_Operators(operator))
        yield


def meta_backend(engine: Engine) -> CudaBackend:
    return CudaBackend(engine.model, engine.build, meta_weights(engine))


def step_kernels(engine: Engine, batch: int, multiprocessors: int) -> Counter[str]:
    """The kernels of a decode step of ``batch`` sessions, by name; a product of cuBLAS counts as one."""
    kernels: Counter[str] = Counter()
    step = next(step for step in meta_backend(engine).steps if step.size == batch)
    count = kernels.update
    with intercepted(lambda kernel, *_, **__: count([kernel.__name__]), lambda name: count([name]), multiprocessors):
        step.run()
    return kernels


def launch_all(engine: Engine, launch: Launch, multiprocessors: int) -> None:
    """Call ``launch`` for our kernels as loading the engine on a GPU launches them."""
    backend = meta_backend(engine)
    with intercepted(launch, lambda name: None, multiprocessors):
        backend.warm_up(engine.build)
        for step in (*backend.prompts, *backend.steps):
            step.run()


def compile_engine(engine: Engine) -> list[str]:
    """Compile the engine's kernels for this machine's GPU into Triton's cache on disk. Returns errors."""
    errors = []
    run = JITFunction.run

    def compiled(kernel: Any, *args: Any, **others: Any) -> None:
        try:
            # Its launcher is compiled too, and the GPU says whether it has the resources.
            run(kernel, *args, **others | {"warmup": True})._init_handles()
        except Exception as error:
            errors.append(f"{kernel.__name__}: {type(error).__name__}: {str(error).splitlines()[0]}")

    launch_all(engine, compiled, torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count)
    return errors


def distinct(engines: Iterable[Engine]) -> list[Engine]:
    """One engine for all that differ in batch and chunk alone, with the largest of both."""
    largest: dict[Engine, Engine] = {}
    for engine in engines:
        same = engine._replace(build=replace(engine.build, max_batch_size=1, max_num_tokens=1))
        build, other = engine.build, largest.get(same, engine).build
        batch = max(build.max_batch_size, other.max_batch_size)
        chunk = max(build.max_num_tokens, other.max_num_tokens)
        largest[same] = engine._replace(build=replace(build, max_batch_size=batch, max_num_tokens=chunk))
    return list(largest.values())


def compile_all(
    engines: Iterable[Engine], compile_one: Callable[[Engine], list[str]] = compile_engine
) -> Iterator[str]:
    """Compile the engines' kernels, a process for each processor. Yields what failed: it will fail again where it is
    measured, and be a row there."""
    wanted = distinct(engines)
    processes = max(1, min(len(os.sched_getaffinity(0)), len(wanted)))
    pool = ProcessPoolExecutor(processes, get_context("spawn"))
    try:
        for future in as_completed([pool.submit(compile_one, engine) for engine in wanted], COMPILING_SECONDS):
            yield from future.result()
    except Exception as error:  # a process that died, or the time
        yield f"compiling ended early: {type(error).__name__}: {error}"
    finally:
        workers = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in workers:
            process.terminate()
