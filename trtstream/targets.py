"""The targets that engines are built for: one table with everything the package knows of each.

An entry's functions lie in the rooms that do the work. They are given by name and imported when they are first called,
so that this file needs nothing and everybody can ask it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

QUANTIZATIONS = ("none", "int8", "int4")
KV_DTYPES = ("fp8", "int8")
"""Number formats of a KV cache beside an engine's dtype."""
KEPT = "kept"
"""The quantization that leaves weights in the checkpoint's own blocks."""


@dataclass(frozen=True)
class TensorrtLibrary:
    """A Python library of TensorRT: its module, the first version with the layers of our networks, where to install.

    ``needs_gpu``: it builds on a machine with a GPU only, for GPUs of that kind.
    """

    module: str
    least: tuple[int, int]
    where: str
    needs_gpu: bool


@dataclass(frozen=True)
class Target:
    """One target: the formats of its engines, and the functions that build, run and package them.

    Number formats and sizes:

    * ``dtypes``, of which the first is the default, and ``quantizations``.
    * ``kv_dtypes`` of KV caches, beside the engine's dtype.
    * ``files`` that every engine has, by their paths in the engine directory.
    * ``writes_first``: a chunk is written to the cache before it attends, so that a ring needs spare slots.
    * ``sinks_per_session``: sessions may differ in their number of sinks, and have a learned sink token.
    * ``tensorrt_llm_options``: engines have `trtstream.settings.TensorrtLlmOptions`.
    * ``automatic``: ``--target auto`` may choose it.
    * ``library``: the Python library that a TensorRT target builds and runs with.

    Building, where ``checkpoint`` is a `trtstream.build.checkpoint.Checkpoint` and ``build`` a `BuildConfig`:

    * ``build(checkpoint, build, output, progress) -> EngineConfig`` writes the engine directory ``output`` atomically.
    * ``memory(checkpoint, build) -> MemoryEstimate``, without reading a tensor; raises TrtstreamError for sizes that
      the target cannot divide or quantize.
    * ``check_builder()`` raises TrtstreamError if this machine cannot build.

    Running, on ``device`` ("cpu" or "cuda"):

    * ``why_not()`` is why this machine runs no engine of the target, with the fix, or None.
    * ``why_not_built_with(toolchain)`` is why it does not run one with that `EngineConfig.toolchain`, though it runs
      others, or None.
    * ``load(folder, config) -> Backend`` loads a verified engine. None: no process of trtstream runs it.
    * ``backend(model, build, weights) -> Backend`` computes with `DecoderWeights` on ``device``, without an engine
      directory. None: the target has no such thing.

    ``package(engine, config, output, model_name) -> Path`` adds an engine to a Triton model repository and returns its
    folder there.
    """

    dtypes: tuple[str, ...]
    files: tuple[str, ...]
    build: Callable[..., Any]
    memory: Callable[..., Any]
    package: Callable[..., Any]
    quantizations: tuple[str, ...] = ("none",)
    kv_dtypes: tuple[str, ...] = ()
    writes_first: bool = False
    sinks_per_session: bool = True
    tensorrt_llm_options: bool = False
    device: str = "cuda"
    library: TensorrtLibrary | None = None
    automatic: bool = False
    check_builder: Callable[[], object] = lambda: None
    why_not: Callable[[], str | None] = lambda: None
    why_not_built_with: Callable[[Mapping[str, Any]], str | None] = lambda toolchain: None
    load: Callable[..., Any] | None = None
    backend: Callable[..., Any] | None = None


def _call(name: str, *arguments: Any) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)(*arguments)


def lazy(name: str, *first: object) -> partial[Any]:
    """The function ``module:function``, to be imported when it is called; ``first`` are its first arguments."""
    return partial(_call, name, *first)


def _tensorrt(name: str, library: TensorrtLibrary, *, automatic: bool) -> Target:
    """Both TensorRT targets have one network definition and one backend."""
    return Target(
        dtypes=("bfloat16", "float16", "float32"),
        files=("rank0.engine",),
        quantizations=QUANTIZATIONS,
        writes_first=True,
        library=library,
        automatic=automatic,
        check_builder=lazy("trtstream.build.tensorrt.engine:load_builder", name),
        build=lazy("trtstream.build.tensorrt.engine:build_tensorrt_engine", name),
        memory=lazy("trtstream.build.tensorrt.memory:tensorrt_memory", name),
        why_not=lazy("trtstream.plugins.tensorrt_library:why_no_tensorrt", name),
        why_not_built_with=lazy("trtstream.plugins.tensorrt_library:why_not_built_with", name),
        load=lazy("trtstream.runtime.tensorrt_executor:load"),
        package=MODEL,
    )


MODEL = lazy("trtstream.deploy.serving.package:package_model")

# From the target that runs anywhere to those that need the most: ``auto`` takes the last one that this machine runs.
TARGETS = {
    "cpu": Target(
        dtypes=("float32", "bfloat16"),
        files=("rank0.safetensors", "rank0.so"),
        quantizations=(*QUANTIZATIONS, KEPT),
        device="cpu",
        automatic=True,
        check_builder=lazy("trtstream.plugins.cpu_kernel:compiler"),
        build=lazy("trtstream.build.cpu:build_cpu_engine"),
        memory=lazy("trtstream.build.cpu:cpu_memory"),
        why_not_built_with=lazy("trtstream.plugins.cpu_device:why_not_built_with"),
        load=lazy("trtstream.runtime.cpu:load"),
        backend=lazy("trtstream.runtime.cpu:CpuBackend"),
        package=MODEL,
    ),
    "cuda": Target(
        dtypes=("bfloat16", "float16", "float32"),
        files=("rank0.safetensors",),
        quantizations=QUANTIZATIONS,
        kv_dtypes=KV_DTYPES,
        automatic=True,
        build=lazy("trtstream.build.cuda:build_cuda_engine"),
        memory=lazy("trtstream.build.cuda:cuda_memory"),
        why_not=lazy("trtstream.plugins.cuda_device:why_no_cuda"),
        load=lazy("trtstream.runtime.cuda:load"),
        backend=lazy("trtstream.runtime.cuda:CudaBackend"),
        package=MODEL,
    ),
    "tensorrt": _tensorrt(
        "tensorrt",
        TensorrtLibrary("tensorrt", (10, 15), "on the machine with the NVIDIA GPU; pip fetches it from NVIDIA", True),
        automatic=True,
    ),
    "tensorrt-rtx": _tensorrt(
        "tensorrt-rtx",
        TensorrtLibrary("tensorrt_rtx", (1, 7), "on any machine to build, on the one with the RTX GPU to run", False),
        automatic=False,
    ),
    "tensorrt-llm": Target(
        dtypes=("bfloat16", "float16"),
        files=("build.sh", "checkpoint/config.json", "checkpoint/rank0.safetensors"),
        quantizations=("none", "int8"),
        sinks_per_session=False,
        tensorrt_llm_options=True,
        build=lazy("trtstream.build.tensorrt_llm.target:build_tensorrt_llm_engine"),
        memory=lazy("trtstream.build.tensorrt_llm.target:tensorrt_llm_memory"),
        why_not=lambda: "Triton's tensorrtllm backend alone runs it: `trtstream package` it, then serve the repository",
        package=lazy("trtstream.deploy.tensorrt_llm.package:package_tensorrt_llm"),
    ),
}


def best_target(suits: Callable[[Target], bool] = lambda target: target.automatic) -> str:
    """Of the targets that ``suits`` approves of, the last that this machine runs."""
    return next(name for name in reversed(TARGETS) if suits(TARGETS[name]) and TARGETS[name].why_not() is None)
