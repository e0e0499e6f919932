"""Compiles and opens the decode step's library: C++ with a C interface, so it needs g++ and no PyTorch headers."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from trtstream.errors import TrtstreamError
from trtstream.machine import cpu_flags
from trtstream.plugins import cpu_structures as c
from trtstream.settings import BuildConfig, ModelConfig

FOLDER = Path(__file__).parent / "cpu"
LIBRARY = FOLDER / "library.cpp"
# Without -ffast-math at the link step, which would switch denormals off for the whole process.
COMPILE_FLAGS = ["-O3", "-ffast-math", "-std=c++17", "-fPIC", "-fopenmp"]
LINK_FLAGS = ["-shared", "-fopenmp"]
THIS_CPU = "-march=native"


def compiler() -> str:
    """The C++ compiler: $CXX or g++."""
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        raise TrtstreamError(f"the cpu target compiles its decode step and found no {name}; install g++ or set CXX")
    return path


def compile_kernel(model: ModelConfig, build: BuildConfig, output: Path) -> None:
    """Compile a model's decode step into the shared library ``output``, for this machine's CPU."""
    compile_library(LIBRARY, geometry(model, build), output)


def compile_library(source: Path, defines: Mapping[str, int], output: Path, *cpu_flags: str) -> None:
    """Compile ``source`` with macros into the shared library ``output``; ``cpu_flags`` replace those of this CPU."""
    macros = [f"-D{name}={value}" for name, value in defines.items()]
    object_file = output.with_suffix(".o")
    _run([*COMPILE_FLAGS, *(cpu_flags or (THIS_CPU,)), *macros, "-c", source, "-o", object_file])
    _run([*LINK_FLAGS, object_file, "-o", output])
    object_file.unlink()


def geometry(model: ModelConfig, build: BuildConfig) -> dict[str, int]:
    """The compile-time constants, by their names in plugins/cpu/, in the order of its `library_geometry`."""
    return {
        "HEAD_DIM": model.head_dim,
        "NUM_HEADS": model.num_attention_heads,
        "NUM_KV_HEADS": model.num_key_value_heads,
        "BFLOAT16": int(build.dtype == "bfloat16"),
        "BLOCKS": int(build.quantization != "none"),
    }


def _run(arguments: list[str | Path]) -> str:
    result = subprocess.run([compiler(), *arguments], capture_output=True, text=True)
    if result.returncode:
        first_error = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr.strip())
        raise TrtstreamError(f"{compiler()} could not compile the decode step: {first_error}")
    return result.stdout


def compiled_instruction_sets() -> list[str]:
    """The CPU flags (names of /proc/cpuinfo) that code compiled here may use."""
    macros = {
        line.split()[1].strip("_").replace("_", "").lower()
        for line in _run([*COMPILE_FLAGS, THIS_CPU, "-dM", "-E", "-x", "c++", os.devnull]).splitlines()
    }
    return sorted(flag for flag in cpu_flags() if flag.replace("_", "") in macros)


def open_library(path: Path, model: ModelConfig, build: BuildConfig) -> ctypes.CDLL:
    """The library at ``path``. Raises TrtstreamError if it cannot be loaded or was compiled for other sizes."""
    expected = list(geometry(model, build).values())
    structures = [ctypes.sizeof(structure) for structure in (c.Model, c.Layer, c.Sessions)]
    try:
        library = ctypes.CDLL(str(path.resolve()))
        found = _numbers(library, "library_geometry", len(expected))
        has_step = hasattr(library, "decode_step")
        found_structures = _numbers(library, "structure_bytes", len(structures)) if has_step else structures
    except (OSError, ValueError) as error:  # ValueError: it has no such symbol
        raise TrtstreamError(f"{path} cannot be loaded ({error}); rebuild the engine") from error
    if found != expected:
        raise TrtstreamError(f"{path} was compiled for other sizes than config.json gives; rebuild the engine")
    if found_structures != structures:
        raise TrtstreamError(f"{path} was compiled by another trtstream; rebuild the engine")
    return library


def _numbers(library: ctypes.CDLL, symbol: str, count: int) -> list[int]:
    return list((ctypes.c_int64 * count).in_dll(library, symbol))
