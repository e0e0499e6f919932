"""The TensorRT targets' parts: which libraries run here, then correctness, and decode and prefill next to ``cuda``'s.

Engines are built for each window and chunk, so models are small: a build should take less than a minute.
Where no library is installed, or none takes this GPU, a part's rows say so and nothing has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.gpu.bench import Bench, Case
from benchmarks.gpu.correctness import engine_checks
from benchmarks.gpu.measurements import decode_of, prefill_of
from benchmarks.gpu.results import Row
from benchmarks.gpu.tensorrt_engines import libraries, make_tensorrt_engine


def tensorrt(bench: Bench) -> Iterator[Case]:
    """Each library: whether it runs on this GPU, and whether its engines are correct."""
    yield Case({}, partial(_checks, bench))


def _checks(bench: Bench) -> Iterator[Row]:
    for target in (yield from libraries(bench)):
        for case in engine_checks(partial(make_tensorrt_engine, target)):
            yield from ({"target": target, **case.labels, **row} for row in case.run())


def tensorrt_decode(bench: Bench) -> Iterator[Case]:
    """What part ``decode`` measures, for every target in turn: full, wrapped sessions."""
    yield Case({}, partial(_in_turn, bench, decode_of))


def tensorrt_prefill(bench: Bench) -> Iterator[Case]:
    """What part ``prefill`` measures, for every target in turn: a prompt of four chunks, past C all the way."""
    yield Case({}, partial(_in_turn, bench, prefill_of))


def _in_turn(bench: Bench, cases_of: Callable[..., Iterator[Case]]) -> Iterator[Row]:
    # One case: which libraries run here is known after they have built and run an engine.
    if targets := (yield from libraries(bench)):
        for case in cases_of(bench, bench.sizes.tensorrt_models, ["cuda", *targets]):
            yield from (case.labels | row for row in case.run())
