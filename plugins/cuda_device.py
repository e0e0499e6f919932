"""Whether this machine can run the ``cuda`` target, and why not: a usable GPU, and the Triton language."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch

from trtstream.errors import TrtstreamError

LEAST_CAPABILITY = (8, 0)  # Ampere, the first with bfloat16 and the oldest that the Triton language supports
FP8_CAPABILITY = (8, 9)  # Ada, the first that converts 8-bit floats


def check_kv_dtype(kv_dtype: str | None) -> None:
    """Raise TrtstreamError if this machine's GPU cannot compute with a KV cache of that format."""
    capability = torch.cuda.get_device_capability()
    if kv_dtype == "fp8" and capability < FP8_CAPABILITY:
        actual, least = (".".join(map(str, version)) for version in (capability, FP8_CAPABILITY))
        raise TrtstreamError(
            f"the engine has a KV cache in fp8, which takes compute capability {least} (Ada or newer), and "
            f"{torch.cuda.get_device_name()} has {actual}; build it with --kv-dtype int8"
        )


def why_no_cuda() -> str | None:
    """Why the cuda target cannot run here, and how to fix it; None if it can."""
    return why_no_gpu() or _why_no_triton()


def why_no_gpu() -> str | None:
    """Why torch cannot compute on a GPU here, and how to fix it; None if it can."""
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is not built for CUDA; install PyPI's "
            "(`pip install --force-reinstall torch --index-url https://pypi.org/simple`)"
        )
    try:
        torch.cuda.init()
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    except (RuntimeError, AssertionError) as error:
        return f"torch cannot use a GPU: {str(error).splitlines()[0]}"
    if capability < LEAST_CAPABILITY:
        actual, least = (".".join(map(str, version)) for version in (capability, LEAST_CAPABILITY))
        return f"{name} has compute capability {actual}, and at least {least} is needed (Ampere or newer)"
    return None


def _why_no_triton() -> str | None:
    """Why the Triton language cannot compile kernels; their launchers are compiled as C."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"the Triton language cannot be imported ({error}); install the triton that torch asks for"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "the Triton language needs a C compiler; install gcc or set CC"
    include = Path(sysconfig.get_paths(scheme="posix_prefix")["include"])
    if not (include / "Python.h").is_file():
        return f"the Triton language needs Python's headers and {include} has none; install python3-dev"
    return None
