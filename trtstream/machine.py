"""This machine: its memory, its CPU, and how reports name it."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import platform
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from trtstream import control_group

CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
STAT = Path("/proc/stat")


def physical_memory() -> int:
    """Bytes of memory that this machine has, or that its container may use."""
    return min(_bytes(MEMINFO, "MemTotal"), control_group.memory_limit() or sys.maxsize)


def available_memory() -> int:
    """Bytes of memory that a process can still take, without swapping and within its container's limit."""
    free = control_group.free_memory()
    return max(0, min(_bytes(MEMINFO, "MemAvailable"), sys.maxsize if free is None else free))


def resident_memory(process: int | None = None) -> int:
    """Bytes of memory that the process of this id, or this one, has resident now, mapped files included."""
    return _bytes(_status(process), "VmRSS")


def peak_memory() -> int:
    """The most bytes that this process has had resident at any time, mapped files included."""
    return _bytes(_status(None), "VmHWM")


def release_freed_memory() -> None:
    """Give memory that this process has freed back to the system: glibc keeps that of small objects for itself."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def cpu_flags() -> set[str]:
    """The CPU's flags, as /proc/cpuinfo names them."""
    return set(_field(CPUINFO, "flags").split())


def usable_cpus() -> float:
    """CPUs that this process may use: those it may run on, and no more than its container's quota."""
    cpus = len(os.sched_getaffinity(0))
    return min(cpus, control_group.cpu_limit() or cpus)


def busy_cpu_seconds(cpus: Collection[int]) -> float:
    """Seconds that ``cpus`` have been busy since this machine started, whoever used them."""
    names = {f"cpu{cpu}" for cpu in cpus}
    ticks = 0
    for line in STAT.read_text().splitlines():
        name, *counts = line.split()
        if name in names:
            user, nice, system, _idle, _iowait, *others = map(
                int, counts[:8]
            )  # irq, softirq, steal; guests are in user
            ticks += user + nice + system + sum(others)
    return ticks / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """The machine and the software that a figure was measured on, as JSON values."""
    import torch

    import trtstream

    return {
        "cpu": _field(CPUINFO, "model name") or "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(physical_memory() / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "trtstream": trtstream.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _status(process: int | None) -> Path:
    return Path("/proc", "self" if process is None else str(process), "status")


def _bytes(file: Path, name: str) -> int:
    """A field of ``file`` that is given in kB."""
    return int(_field(file, name).split()[0]) * 1024


def _field(file: Path, name: str) -> str:
    """The text after ``name`` and a colon in the first line that begins so; empty if no line does."""
    for line in file.read_text().splitlines():
        field, _, value = line.partition(":")
        if field.strip() == name:
            return value.strip()
    return ""
