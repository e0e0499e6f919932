"""The number of threads, next to real busy processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.busy_neighbours import neighbours
from trtstream.runtime.cpu_threads import threads_for

WATCH = """
import os, time, torch
from trtstream.runtime.cpu_threads import CpuThreads
threads, seen = CpuThreads(), set()
until = time.monotonic() + 30
while time.monotonic() < until and not (len(os.sched_getaffinity(0)) == 1 or int(WANTED) in seen):
    threads.follow()
    seen.add(torch.get_num_threads())
    time.sleep(0.05)
print(int(WANTED) in seen)
"""

FOLLOW = """
import torch
from trtstream.runtime.cpu_threads import CpuThreads
CpuThreads().follow()
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("cores", "others", "limit", "threads"),
    [
        (2, 0.0, 2, 2), (2, 0.3, 2, 2), (2, 0.7, 2, 1), (2, 1.4, 2, 1), (2, 9.0, 2, 1),
        (64, 0.0, 4, 4), (64, 60.2, 8, 4), (64, 1.0, 64, 63),
    ],
)  # fmt: skip
def test_threads_take_the_cores_that_are_left(cores: int, others: float, limit: int, threads: int) -> None:
    assert threads_for(cores, others, limit) == threads


@pytest.mark.process
def test_busy_processes_are_noticed() -> None:
    cores = len(os.sched_getaffinity(0))
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with neighbours(cores):
        command = [sys.executable, "-c", WATCH.replace("WANTED", "1")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "True\n"


@pytest.mark.process
def test_a_number_that_the_user_gives_is_kept() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", FOLLOW], env=environment, capture_output=True, text=True)
    assert done.stdout == "1\n"
