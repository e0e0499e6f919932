"""Memory in pages of 2 MB, where the system grants them: a step reads all of it, which 4 KB pages slow down."""

from __future__ import annotations

import contextlib
import mmap

import torch


def new_memory(nbytes: int) -> torch.Tensor:
    """Bytes of zeros [nbytes] (uint8), aligned to a page; the system chooses the pages' size when they are touched."""
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:nbytes]
