"""Loops that read memory and do nothing else, in different orders: the fastest is the floor below a decode step."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import torch

from trtstream.plugins.cpu_kernel import FOLDER, THIS_CPU, compile_library
from trtstream.plugins.huge_pages import new_memory
from trtstream.runtime.cpu_step import address

SOURCE = Path(__file__).with_name("read_memory.cpp")
STREAMS = (1, 2, 4, 8)
FASTEST = "reading in 4 places, pages of 2 MB"
"""Of the loops, on the CPUs that were tried."""

LEAST_BYTES = 1 << 28  # of the memory that is read in turn, far more than a cache holds


def read_loops(nbytes: int, threads: int, folder: Path) -> dict[str, Callable[[], None]]:
    """Loops that read ``nbytes``, each time others of a larger memory, by their names."""
    output = folder / "read_memory.so"
    compile_library(SOURCE, {}, output, THIS_CPU, f"-I{FOLDER}")
    library = ctypes.CDLL(str(output))
    size = max(nbytes, LEAST_BYTES // nbytes * nbytes)
    small_pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    small_pages.madvise(mmap.MADV_NOHUGEPAGE)
    memories = {"2 MB": new_memory(size), "4 KB": torch.frombuffer(small_pages, dtype=torch.uint8)}

    def loop(memory: torch.Tensor, streams: int) -> Callable[[], None]:
        memory.fill_(1)
        places = cycle(range(0, size - nbytes + 1, nbytes))

        def read() -> None:
            library.read_memory(address(memory[next(places) :]), *map(ctypes.c_int64, (nbytes, streams, threads)))

        return read

    return {
        f"reading in {streams} places, pages of {pages}": loop(memory, streams)
        for pages, memory in memories.items()
        for streams in STREAMS
    }
