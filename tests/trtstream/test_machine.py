"""Facts about this machine, against other sources of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from trtstream.machine import available_memory, busy_cpu_seconds, cpu_flags, machine, physical_memory

BLOCK = 64 << 20
ALLOCATE = f"""
from trtstream.machine import peak_memory, resident_memory
before = resident_memory()
block = b"x" * {BLOCK}
during = resident_memory()
del block
print(during - before, resident_memory() - before, peak_memory() - before)
"""


def test_the_machines_memory() -> None:
    assert physical_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory() < physical_memory()


def test_the_memory_of_a_process() -> None:
    """In a process of its own: in this one other tests' memory may be freed at any time."""
    done = subprocess.run([sys.executable, "-c", ALLOCATE], capture_output=True, text=True, check=True)
    during, after, peak = map(int, done.stdout.split())
    assert BLOCK * 0.9 < during < BLOCK * 1.1  # the kernel counts to a few pages
    assert abs(after) < BLOCK * 0.1
    assert BLOCK * 0.9 < peak < BLOCK * 1.1


def test_the_cpu() -> None:
    lscpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    lines = dict(line.split(":", 1) for line in lscpu.stdout.splitlines() if ":" in line)
    assert cpu_flags() == set(lines["Flags"].split())
    assert machine()["cpu"] == lines["Model name"].strip()


def test_busy_cpus() -> None:
    cpus = os.sched_getaffinity(0)
    before, own = busy_cpu_seconds(cpus), time.process_time()
    while time.process_time() - own < 0.5:
        pass
    assert busy_cpu_seconds(cpus) - before >= 0.45  # ticks of 10 ms
    assert busy_cpu_seconds(()) == 0
