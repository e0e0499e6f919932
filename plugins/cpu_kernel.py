"""Compiles and calls decode_attention.cpp: plain C++ with a C interface, so it needs g++ and no PyTorch headers."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import torch

from trtstream.errors import TrtstreamError
from trtstream.machine import cpu_flags
from trtstream.plugins.decode_plan import StepPlan
from trtstream.settings import BuildConfig, ModelConfig

SOURCE = Path(__file__).with_name("decode_attention.cpp")
# Without -ffast-math at the link step, which would switch denormals off for the whole process.
COMPILE_FLAGS = ["-O3", "-march=native", "-ffast-math", "-std=c++17", "-fPIC", "-fopenmp"]
LINK_FLAGS = ["-shared", "-fopenmp"]


def compiler() -> str:
    """The C++ compiler: $CXX or g++."""
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        raise TrtstreamError(
            f"the cpu target compiles its attention kernel and found no {name}; install g++ or set CXX"
        )
    return path


def compile_kernel(model: ModelConfig, build: BuildConfig, output: Path) -> None:
    """Compile the kernel for one model and window into the shared library ``output``, for this machine's CPU."""
    defines = _geometry(model, build)
    object_file = output.with_suffix(".o")
    _run([*COMPILE_FLAGS, *(f"-D{name}={value}" for name, value in defines.items()), "-c", SOURCE, "-o", object_file])
    _run([*LINK_FLAGS, object_file, "-o", output])
    object_file.unlink()


def _geometry(model: ModelConfig, build: BuildConfig) -> dict[str, int]:
    """The kernel's compile-time constants, in the order of ``kernel_geometry`` in decode_attention.cpp."""
    return {
        "HEAD_DIM": model.head_dim,
        "NUM_HEADS": model.num_attention_heads,
        "NUM_KV_HEADS": model.num_key_value_heads,
        "WIDTH": build.max_attention_window,
        "MAX_SINKS": build.max_sink_token_length,
        "BFLOAT16": int(build.dtype == "bfloat16"),
    }


def _run(arguments: list[str | Path]) -> str:
    result = subprocess.run([compiler(), *arguments], capture_output=True, text=True)
    if result.returncode:
        first_error = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr.strip())
        raise TrtstreamError(f"{compiler()} could not compile the attention kernel: {first_error}")
    return result.stdout


def compiled_instruction_sets() -> list[str]:
    """The CPU flags (names of /proc/cpuinfo) that code compiled here may use."""
    macros = {
        line.split()[1].strip("_").replace("_", "").lower()
        for line in _run([*COMPILE_FLAGS, "-dM", "-E", "-x", "c++", os.devnull]).splitlines()
    }
    return sorted(flag for flag in cpu_flags() if flag.replace("_", "") in macros)


class DecodeKernel:
    """The compiled kernel, ready to be called."""

    def __init__(self, library: Path, model: ModelConfig, build: BuildConfig) -> None:
        try:
            loaded = ctypes.CDLL(str(library.resolve()))
        except OSError as error:
            raise TrtstreamError(f"{library} cannot be loaded ({error}); rebuild the engine") from error
        expected = list(_geometry(model, build).values())
        if list((ctypes.c_int64 * len(expected)).in_dll(loaded, "kernel_geometry")) != expected:
            raise TrtstreamError(f"{library} was compiled for other sizes than config.json gives; rebuild the engine")
        loaded.scratch_bytes.restype = ctypes.c_int64
        self._call = loaded.decode_attention
        self._call.restype = None
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._call.argtypes = [pointer, pointer, pointer, pointer, integer, pointer, integer, pointer, pointer]
        self._scratch = torch.empty(build.max_batch_size * loaded.scratch_bytes(), dtype=torch.uint8)

    def __call__(self, qkv: torch.Tensor, cache: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        """Rotate, write and attend for one token of each session of the plan.

        qkv [batch, (heads + 2 * kv_heads) * head_dim] as projected; ``cache`` [sessions, 2, kv_heads, W, head_dim]
        may be a view strided in its first dimension and is changed in place. Returns [batch, heads * head_dim].
        """
        _, _, kv_heads, _, head_dim = cache.shape
        out = torch.empty(len(qkv), qkv.shape[1] - 2 * kv_heads * head_dim, dtype=qkv.dtype)
        self._call(
            qkv.data_ptr(),
            None if plan.rotation is None else plan.rotation.data_ptr(),
            None if plan.slopes is None else plan.slopes.data_ptr(),
            cache.data_ptr(),
            cache.stride(0),
            plan.rows.data_ptr(),
            len(plan.rows),
            self._scratch.data_ptr(),
            out.data_ptr(),
        )
        return out
