"""Facts about this machine, against other sources of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trtstream.machine import available_memory, cpu_flags, cpu_limit, machine, physical_memory

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


@pytest.mark.parametrize(
    ("cpu_max", "limit"), [("max 100000\n", None), ("250000 100000\n", 2.5), ("50000 100000\n", 0.5)]
)
def test_the_limit_of_a_control_group(cpu_max: str, limit: float | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(cpu_max)
    assert cpu_limit(tmp_path / "cpu.max") == limit
    assert cpu_limit(tmp_path / "nothing") is None
