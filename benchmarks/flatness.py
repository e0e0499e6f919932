"""Does an endless conversation stay as fast and as small as a young one?

Feeds one session many tokens and watches resident memory; then steps it in turn with a young session (A B A B ...) and
compares the medians. Writes JSON and prints a summary:

    python -m benchmarks.flatness ENGINE --tokens 200000 --json benchmarks/results/flatness.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import write_json
from benchmarks.timing import in_turn
from trtstream.machine import machine, resident_memory
from trtstream.runtime.loading import load_engine
from trtstream.runtime.streaming_engine import StreamingEngine


def feed(engine: StreamingEngine, total: int, samples: int) -> list[dict[str, Any]]:
    """Feed ``total`` random tokens to lane 0 in equal parts; position, resident bytes and ms per token after each."""
    generator = torch.Generator().manual_seed(0)
    history = []
    for _ in range(samples):
        tokens = torch.randint(engine.model.vocab_size, (total // samples,), generator=generator).tolist()
        started = time.perf_counter()
        engine.prefill(0, tokens)
        elapsed = time.perf_counter() - started
        sample = {"position": engine.position(0), "resident_bytes": resident_memory()}
        history.append(sample | {"prefill_ms_per_token": elapsed / len(tokens) * 1e3})
        print(f"{sample['position']:>9,} tokens, {sample['resident_bytes'] / 1e6:,.1f} MB", file=sys.stderr)
    return history


def step_in_turn(engine: StreamingEngine, steps: int) -> dict[str, float]:
    """Median milliseconds of a decode step of the old session (lane 0) and of a young one (lane 1), A B A B."""
    engine.prefill(1, list(range(2 * engine.build.max_attention_window)))
    runs = {name: partial(engine.decode, [lane], [7]) for lane, name in enumerate(("old", "young"))}
    times = in_turn(runs, torch.device("cpu"), steps)
    old, young = (statistics.median(times[name]) for name in ("old", "young"))
    return {"steps": steps, "old_ms": old, "young_ms": young, "old_to_young": old / young}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    engine = load_engine(arguments.engine)
    engine.prefill(0, list(range(2 * engine.build.max_attention_window)))  # warm: every buffer exists
    history = feed(engine, arguments.tokens, arguments.samples)
    resident = [sample["resident_bytes"] for sample in history]
    growth, decode = max(resident) / resident[0] - 1, step_in_turn(engine, arguments.steps)
    result = {
        "machine": machine(),
        "architecture": engine.model.architecture,
        "max_attention_window": engine.build.max_attention_window,
        "dtype": engine.build.dtype,
        "history": history,
        "resident_growth": growth,
        "decode": decode,
    }
    print(
        f"{engine.position(0):,} tokens: resident memory grew by {growth:.2%}; decode {decode['old_ms']:.1f} ms old, "
        f"{decode['young_ms']:.1f} ms young, ratio {decode['old_to_young']:.3f}"
    )
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
