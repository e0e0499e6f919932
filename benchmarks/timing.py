"""Times on the device and end to end, and the memory's bandwidth. On the CPU, all times are the host's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch

WARM_UP = 3  # calls before the first that counts: kernels are compiled, clocks are up


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(runs: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call until the device has finished, all runs in turn in every round (A B A B ...)."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(WARM_UP + rounds):
        for name, run in runs.items():
            synchronize(device)
            started = time.perf_counter()
            run()
            synchronize(device)
            if number >= WARM_UP:
                times[name].append((time.perf_counter() - started) * 1e3)
    return times


def device_milliseconds(run: Callable[[], object], device: torch.device, calls: int) -> list[float]:
    """Milliseconds of each call on the device, by CUDA events: calls are queued, without waiting in between."""
    if device.type != "cuda":
        return in_turn({"run": run}, device, calls)["run"]
    for _ in range(WARM_UP):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


def summary(times: list[float]) -> dict[str, float]:
    """Median and spread: 10th and 90th percentile (of few calls, nearly the least and the most)."""
    ordered = sorted(times)
    at = (len(ordered) - 1) / 10
    return {
        "ms": statistics.median(ordered),
        "ms_p10": ordered[round(at)],
        "ms_p90": ordered[round(9 * at)],
    }


def bandwidths(device: torch.device, size: int) -> dict[str, float]:
    """Bytes per second of a copy on the device (read and written bytes) and of a sum (read bytes) over ``size`` bytes.

    ``size`` must be far larger than the caches.
    """
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copy = statistics.median(device_milliseconds(lambda: target.copy_(source), device, 10))
    read = statistics.median(device_milliseconds(source.sum, device, 10))
    moved = source.numel() * source.element_size()
    return {"copy": 2 * moved / copy * 1e3, "read": moved / read * 1e3}
