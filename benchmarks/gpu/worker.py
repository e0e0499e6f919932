"""Measures one part in a process of its own, case by case into the results' file, until it is done or time is over.

A case that fails is a row that says why. A case that hangs ends the process, and so does one after which the GPU
refuses all work; the parent then starts another process for the rest.
"""

from __future__ import annotations

import faulthandler
import sys
import time
import traceback
from pathlib import Path

import torch

from benchmarks.gpu import parts
from benchmarks.gpu.bench import FULL, TINY, Bench
from benchmarks.gpu.results import Results, Row


class PoisonedContext(Exception):
    """A kernel's error has ended all that this process can do on the GPU."""


def measure(part: str, bench: Bench, results: Results, seconds: float) -> bool:
    """Measure the part's cases that the results lack; whether there was time for all. Raises PoisonedContext."""
    deadline = time.monotonic() + seconds
    for case in parts.cases(part, bench):
        if results.has(part, case.labels):
            continue
        if time.monotonic() > deadline:
            return False
        results.measuring(part, case.labels)
        started = time.monotonic()
        rows: list[Row] = []
        faulthandler.dump_traceback_later(parts.PARTS[part].hanging_seconds, exit=True)
        try:
            for row in case.run():
                rows.append(row)
                say(case.labels | row)
        except Exception as error:
            traceback.print_exc()
            rows.append({"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"})
        faulthandler.cancel_dump_traceback_later()
        results.add(part, case.labels, rows, time.monotonic() - started)
        if any("error" in row for row in rows) and not works(bench.device):
            raise PoisonedContext(f"after {case.labels}")
    return True


def works(device: torch.device) -> bool:
    """Whether the device still computes."""
    try:
        return bool(torch.ones(1, device=device).add(1).item() == 2)
    except RuntimeError:
        return False


def say(row: Row) -> None:
    print(f"  {', '.join(f'{key} {value}' for key, value in row.items())}", file=sys.stderr, flush=True)


def main(part: str, json: str, device: str, tiny: str, seconds: str) -> int:
    bench = Bench(torch.device(device), TINY if tiny == "tiny" else FULL)
    results = Results(Path(json), bench.title)
    if measure(part, bench, results, float(seconds)):
        results.finish(part, state="complete")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
