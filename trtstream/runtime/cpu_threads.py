"""How many threads compute: as many as there are cores that other processes leave.

OpenMP's threads wait for each other at the end of each product, hundreds of times in a step. When one of them loses its
core to another process, all others wait for it and spin on their cores. One thread fewer loses less than that. On two
Zen 4 cores, SmolLM2-135M takes 18 ms a token with two threads and 27 with one; next to one busy process 64 and 28, next
to two of them 136 and 41.
"""

from __future__ import annotations

import os
import time

import torch

from trtstream.machine import busy_cpu_seconds, usable_cpus

CHECK_SECONDS = 0.5  # between two looks at what the others use


class CpuThreads:
    """Sets torch's threads for the thread that computes, which must be the one that calls `follow`.

    ``OMP_NUM_THREADS`` fixes their number.
    """

    def __init__(self) -> None:
        self._cores = os.sched_getaffinity(0)
        self._limit = max(1, int(usable_cpus()))
        self._is_fixed = "OMP_NUM_THREADS" in os.environ
        self._checked_at: float | None = None
        self._busy = self._own = 0.0

    def follow(self) -> None:
        """Call before each step: looks at the other processes now and then, and adapts the number of threads."""
        now = time.monotonic()
        if self._is_fixed or (self._checked_at is not None and now - self._checked_at < CHECK_SECONDS):
            return
        busy, own = busy_cpu_seconds(self._cores), time.process_time()
        others = 0.0
        if self._checked_at is not None:
            others = max(0.0, (busy - self._busy) - (own - self._own)) / (now - self._checked_at)
        self._checked_at, self._busy, self._own = now, busy, own
        threads = threads_for(len(self._cores), others, self._limit)
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)


def threads_for(cores: int, others: float, limit: int) -> int:
    """Threads for ``cores`` of which other processes use ``others``, where this one may use ``limit``."""
    return max(1, min(round(cores - others), limit))
