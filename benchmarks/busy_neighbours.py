"""What does a decode step take on cores that other processes keep busy, or under a quota?

Streams an answer quietly, next to one and two processes that always compute, and under a quota of one CPU (where a
control group can be made), with the threads as trtstream sets them and fixed to all cores, in turn. Linux only. Writes
JSON and prints a table:

    python -m benchmarks.busy_neighbours ENGINE --json benchmarks/results/busy_neighbours.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import trtstream
from benchmarks import write_json
from benchmarks.markdown import table
from trtstream.engine_dir import read_engine
from trtstream.machine import machine
from trtstream.runtime.requests import TurnOutput, TurnRequest

WARM_UP_SECONDS, SECONDS, MIN_TOKENS = 2.0, 6.0, 10
QUOTA = Path("/sys/fs/cgroup/cpu/trtstream-benchmark")  # version 1 of control groups
SURROUNDINGS = {"quiet": 0, "next to one busy process": 1, "next to two": 2, "quota of one CPU": 0}
NEIGHBOUR = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
THREADS = {"as set": None, "all cores": str(len(os.sched_getaffinity(0)))}


def stream(engine: Path) -> list[float]:
    """Milliseconds between the tokens of an answer, in this process."""
    times: list[float] = []

    def arrived(output: TurnOutput | Exception) -> None:
        if isinstance(output, Exception):
            raise output
        times.append(time.perf_counter())

    with trtstream.load(engine) as llm:
        request = TurnRequest(input_ids=tuple(range(100, 400)), max_tokens=1 << 20, ignore_eos=True)
        turn = llm.scheduler.submit(request, arrived)
        time.sleep(WARM_UP_SECONDS)
        first, until = len(times), time.perf_counter() + SECONDS
        while time.perf_counter() < until or len(times) - first < MIN_TOKENS:
            time.sleep(0.1)
        turn.cancel()
    return [(b - a) * 1e3 for a, b in pairwise(times[first:])]


def stream_in_a_process(engine: Path, threads: str | None, quota: bool) -> list[float]:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = threads
    command = [sys.executable, "-m", "benchmarks.busy_neighbours", str(engine), "--stream"]
    if quota:
        command = ["sh", "-c", f'echo $$ > {QUOTA}/cgroup.procs && exec "$@"', "sh", *command]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return list(json.loads(done.stdout))


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that keep a core busy each, and end with this one."""
    busy = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR, str(os.getpid())]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@contextlib.contextmanager
def one_cpu() -> Iterator[bool]:
    """A control group with a quota of one CPU, where one can be made."""
    try:
        QUOTA.mkdir(exist_ok=True)  # an interrupted run may have left it
        (QUOTA / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        print(f"no quota: {error}", file=sys.stderr)
        yield False
        return
    try:
        yield True
    finally:
        QUOTA.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--stream", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.stream:
        print(json.dumps(stream(arguments.engine)))
        return

    load_before = os.getloadavg()[0]
    times: dict[tuple[str, str], list[float]] = {}
    with one_cpu() as has_quota:
        for _ in range(arguments.rounds):
            for surroundings, count in SURROUNDINGS.items():
                quota = surroundings.startswith("quota")
                if quota and not has_quota:
                    continue
                for name, threads in THREADS.items():
                    with neighbours(count):
                        found = stream_in_a_process(arguments.engine, threads, quota)
                    times.setdefault((surroundings, name), []).extend(found)
    quiet = statistics.mean(times["quiet", "as set"])
    rows = [
        {
            "surroundings": surroundings,
            "threads": name,
            "ms a token, mean": statistics.mean(found),
            "median": statistics.median(found),
            "mean to quiet": statistics.mean(found) / quiet,
        }
        for (surroundings, name), found in times.items()
    ]
    print(table(rows))
    if arguments.json:
        build = read_engine(arguments.engine).build_config
        facts = {"dtype": build.dtype, "max_attention_window": build.max_attention_window, "rounds": arguments.rounds}
        result = {"machine": machine(), "load_before": load_before, **facts, "rows": rows}
        write_json(arguments.json, result)


if __name__ == "__main__":
    main()
