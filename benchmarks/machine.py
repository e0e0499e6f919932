"""Names the machine and the GPU that a figure was measured on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from trtstream.machine import machine

__all__ = ["gpu", "machine"]


def gpu() -> dict[str, Any]:
    """The GPU that torch uses, and the software between it and us."""
    import torch
    import triton

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": _driver_version(),
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }


def _driver_version() -> str:
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    return found.group() if found else "unknown"
