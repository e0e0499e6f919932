"""Opens an engine directory: checks that it can run here, and picks its target's backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from trtstream.engine_dir import ENGINE, KERNEL, WEIGHTS, EngineConfig, memory_plan, read_engine, verify_files
from trtstream.errors import TrtstreamError
from trtstream.machine import available_memory, cpu_flags
from trtstream.plugins.cpu_kernel import DecodeKernel
from trtstream.plugins.cuda_device import why_no_cuda
from trtstream.plugins.tensorrt_library import LIBRARIES, load_tensorrt, why_no_tensorrt
from trtstream.progress import progress_bar
from trtstream.runtime.backend import Backend
from trtstream.runtime.cpu import CpuBackend
from trtstream.runtime.cuda import CudaBackend
from trtstream.runtime.decoder import DecoderWeights, collect_weights
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.runtime.tensorrt import TensorrtBackend
from trtstream.runtime.tensorrt_executor import TensorrtExecutor


def load_engine(folder: str | Path) -> StreamingEngine:
    """Load an engine for this process. Raises TrtstreamError in one line if it is damaged or cannot run here."""
    folder = Path(folder)
    config = read_engine(folder)
    check_runnable(folder, config)
    backend = LOADERS[config.target](folder, config)
    return StreamingEngine(config.pretrained_config, config.build_config, backend)


def check_runnable(folder: Path, config: EngineConfig) -> None:
    """Raise TrtstreamError if this machine cannot run engines like this one. Quick: no file of it is read."""
    if config.target == "tensorrt-llm":
        raise TrtstreamError(
            f"{folder} was built for target 'tensorrt-llm' and runs under Triton's tensorrtllm backend only: use "
            "`trtstream package` and `trtstream serve`"
        )
    if config.target not in LOADERS:
        raise TrtstreamError(
            f"{folder} was built for target {config.target!r}; this trtstream runs: {', '.join(LOADERS)}"
        )
    reason = _why_not(config)
    if reason is not None:
        raise TrtstreamError(f"{folder} was built for target {config.target!r} and cannot run here: {reason}")


def _why_not(config: EngineConfig) -> str | None:
    if config.target == "cpu":
        return _why_no_cpu(config)
    if config.target == "cuda":
        return why_no_cuda()
    return why_no_tensorrt(config.target, config.toolchain.get(LIBRARIES[config.target].module))


def _why_no_cpu(config: EngineConfig) -> str | None:
    missing = sorted(set(config.toolchain.get("instruction_sets", ())) - cpu_flags())
    return f"it needs a CPU with {', '.join(missing)}; build it again on this machine" if missing else None


def read_weights(folder: Path, config: EngineConfig, device: str, *, pack: bool) -> DecoderWeights:
    """The engine's weights on ``device``; for ``pack`` see `collect_weights`."""
    with safe_open(folder / WEIGHTS, framework="pt", device=device) as file:
        return collect_weights(config.pretrained_config, set(file.keys()), file.get_tensor, pack=pack)


def _load_cpu(folder: Path, config: EngineConfig) -> Backend:
    check_memory(folder, config, free_memory("cpu"))
    verify_files(folder, config)
    model, build = config.pretrained_config, config.build_config
    kernel = DecodeKernel(folder / KERNEL, model, build)
    return CpuBackend(model, build, read_weights(folder, config, "cpu", pack=True), kernel)


def _load_cuda(folder: Path, config: EngineConfig) -> Backend:
    with _gpu_memory(folder, config):
        verify_files(folder, config)
        device = torch.device("cuda", torch.cuda.current_device())
        weights = read_weights(folder, config, str(device), pack=False)
        with progress_bar("Capturing CUDA graphs") as progress:
            return CudaBackend(config.pretrained_config, config.build_config, weights, device, progress)


def _load_tensorrt(folder: Path, config: EngineConfig) -> Backend:
    with _gpu_memory(folder, config):
        verify_files(folder, config)
        device = torch.device("cuda", torch.cuda.current_device())
        executor = TensorrtExecutor(load_tensorrt(config.target), folder / ENGINE, device)
        with progress_bar("Capturing CUDA graphs") as progress:
            return TensorrtBackend(config.pretrained_config, config.build_config, config.target, executor, progress)


@contextmanager
def _gpu_memory(folder: Path, config: EngineConfig) -> Iterator[None]:
    """Around loading: raises TrtstreamError for too large an engine, before it is loaded or as soon as that shows."""
    available = free_memory(config.target)
    check_memory(folder, config, available)
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrtstreamError(
            f"{folder} fits into the {available / 1e9:.2f} GB that were free on the GPU, but leaves too little to "
            "compute in; build with a smaller --max-batch-size, --max-num-tokens or window"
        ) from error


def free_memory(target: str) -> int:
    """Bytes that an engine of ``target`` can take here: of this machine's memory, or of its GPU's."""
    if target != "cpu":
        return torch.cuda.mem_get_info()[0]
    return available_memory()


LOADERS = {"cpu": _load_cpu, "cuda": _load_cuda, "tensorrt": _load_tensorrt, "tensorrt-rtx": _load_tensorrt}


def check_memory(folder: Path, config: EngineConfig, available: int) -> None:
    """Raise TrtstreamError if weights and caches take more than ``available`` bytes."""
    plan = memory_plan(folder, config)
    if plan["total_bytes"] > available:
        raise TrtstreamError(
            f"{folder} needs {plan['weights_bytes'] / 1e9:.2f} GB for weights and "
            f"{plan['kv_cache_bytes'] / 1e9:.2f} GB for {config.build_config.max_batch_size} sessions, and "
            f"{available / 1e9:.2f} GB are free; build with a smaller --max-batch-size or window"
        )
