"""Runs cases in a child process: one that crashes, hangs or takes all memory is a fault, and another child goes on."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.fuzz.report import Report

START_SECONDS = 120.0  # for the first case of a child, which imports torch
CASE_SECONDS = 30.0
MEMORY_BYTES = 4 << 30
"""Of a child's private memory; an allocation beyond it fails."""

Case = Callable[..., tuple[str, str | None]]
"""``case(number, *arguments)``: what came of one input, and its fault, if any. A function of a module."""


def run_cases(case: Case, arguments: tuple[Any, ...], count: int) -> Report:
    """Run the cases 0 to ``count`` one after the other, each within `CASE_SECONDS`."""
    report, number = Report(), 0
    context = multiprocessing.get_context("spawn")
    while number < count:
        answers, to_us = context.Pipe(duplex=False)
        child = context.Process(target=_run, args=(to_us, case, arguments, number, count))
        child.start()
        to_us.close()
        seconds = START_SECONDS
        while number < count:
            try:
                outcome, fault = answers.recv() if answers.poll(seconds) else ("hangs", f"case {number} does not end")
            except EOFError:
                child.join()
                outcome, fault = "crashes", f"case {number} ends its process with {child.exitcode}"
            report.outcomes[outcome] += 1
            report.faults += [] if fault is None else [fault]
            seconds, number = CASE_SECONDS, number + 1
            if outcome in ("hangs", "crashes"):
                break
        else:
            child.join(CASE_SECONDS)  # it ends by itself, which is when `coverage` writes what it saw
        child.kill()
        child.join()
    return report


def _run(answers: Connection, case: Case, arguments: tuple[Any, ...], first: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    for number in range(first, count):
        answers.send(case(number, *arguments))
