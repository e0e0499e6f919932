"""What does a long prompt cost the answers that are running, and what do they cost it?

One session streams an answer while another one is fed a long prompt: first in chunks whose size follows the time that
they take (`SchedulerLimits.max_itl_ms`), then in whole chunks, and so on in turn. Writes JSON and prints a table:

    python -m benchmarks.long_prompts ENGINE --json benchmarks/results/long_prompts.json
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch

import trtstream
from benchmarks import write_json
from benchmarks.markdown import table
from trtstream.engine_dir import read_engine
from trtstream.machine import machine
from trtstream.runtime.requests import TurnOutput, TurnRequest
from trtstream.runtime.scheduler_limits import SchedulerLimits

QUIET_SECONDS = 5.0  # of the stream without a prompt
PACINGS = {"paced": SchedulerLimits.max_itl_ms, "whole chunks": math.inf}


@dataclass
class Arrivals:
    """When a turn's tokens arrived, in seconds of `time.perf_counter`."""

    times: list[float] = field(default_factory=list)

    def __call__(self, output: TurnOutput | Exception) -> None:
        if isinstance(output, Exception):
            raise output
        self.times.append(time.perf_counter())

    def itl_ms(self, start: float, end: float) -> list[float]:
        """Milliseconds between tokens that arrived from ``start`` to ``end``."""
        return [(b - a) * 1e3 for a, b in pairwise(self.times) if start <= b <= end]


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def measure(engine: Path, max_itl_ms: float, prompt: tuple[int, ...]) -> tuple[list[float], list[float], float]:
    """ITL of a stream without and with the prompt (milliseconds), and the prompt's TTFT (seconds)."""
    llm = trtstream.load(engine, SchedulerLimits(max_itl_ms=max_itl_ms))
    scheduler = llm.scheduler
    stream, first = Arrivals(), Arrivals()
    turn = scheduler.submit(TurnRequest(input_ids=prompt[:100], max_tokens=1 << 20, ignore_eos=True), stream)
    time.sleep(1.0)
    quiet_from = time.perf_counter()
    time.sleep(QUIET_SECONDS)
    submitted = time.perf_counter()
    scheduler.submit(TurnRequest(input_ids=prompt, max_tokens=1), first)
    while not first.times:
        time.sleep(0.01)
    turn.cancel()
    scheduler.drain()
    llm.close()
    quiet = stream.itl_ms(quiet_from, submitted)
    return quiet, stream.itl_ms(submitted, first.times[0]), first.times[0] - submitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    config = read_engine(arguments.engine)
    generator = torch.Generator().manual_seed(0)
    prompt = tuple(
        torch.randint(config.pretrained_config.vocab_size, (arguments.prompt_tokens,), generator=generator).tolist()
    )
    quiet: dict[str, list[float]] = {name: [] for name in PACINGS}
    during: dict[str, list[float]] = {name: [] for name in PACINGS}
    ttft: dict[str, list[float]] = {name: [] for name in PACINGS}
    load_before = os.getloadavg()[0]
    for _ in range(arguments.rounds):
        for name, max_itl_ms in PACINGS.items():
            without, loaded, seconds = measure(arguments.engine, max_itl_ms, prompt)
            quiet[name] += without
            during[name] += loaded
            ttft[name].append(seconds)
    rows = [
        {
            "prefill": name,
            "ITL p50 without it (ms)": percentile(quiet[name], 50),
            "p99": percentile(quiet[name], 99),
            "ITL p50 during it (ms)": percentile(during[name], 50),
            "p99 during it": percentile(during[name], 99),
            "the prompt's TTFT (s)": statistics.median(ttft[name]),
        }
        for name in PACINGS
    ]
    print(table(rows))
    result = {
        "machine": machine(),
        "load_before": load_before,
        "dtype": config.build_config.dtype,
        "max_attention_window": config.build_config.max_attention_window,
        "prompt_tokens": arguments.prompt_tokens,
        "rounds": arguments.rounds,
        "rows": rows,
    }
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
