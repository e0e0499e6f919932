"""The TensorRT targets' parts: which libraries run here, then correctness, and decode and prefill next to ``cuda``'s.

Engines are built for each window and chunk, so models are small: a build should take less than a minute.
Where no library is installed, or none takes this GPU, a part's rows say so and nothing has failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.gpu.bench import Bench, Row
from benchmarks.gpu.correctness import checked, engine_checks
from benchmarks.gpu.measurements import decode_of, prefill_of
from benchmarks.gpu.tensorrt_engines import libraries, make_tensorrt_engine


def tensorrt(bench: Bench) -> Iterator[Row]:
    """Each library: whether it runs on this GPU, and whether its engines are correct."""
    targets = yield from libraries(bench)
    checks = (
        {"target": target, **row} for target in targets for row in engine_checks(partial(make_tensorrt_engine, target))
    )
    yield from checked(checks)


def tensorrt_decode(bench: Bench) -> Iterator[Row]:
    """What part ``decode`` measures, for every target in turn: full, wrapped sessions."""
    if targets := (yield from libraries(bench)):
        yield from decode_of(bench, bench.sizes.tensorrt_models, ["cuda", *targets])


def tensorrt_prefill(bench: Bench) -> Iterator[Row]:
    """What part ``prefill`` measures, for every target in turn: a prompt of four chunks, past C all the way."""
    if targets := (yield from libraries(bench)):
        yield from prefill_of(bench, bench.sizes.tensorrt_models, ["cuda", *targets])
