"""The parts of the TensorRT targets: which libraries run here, then correctness, decode and prefill beside ``cuda``'s.

Engines are built for each window and chunk, so models are small: a build should take less than a minute.
Where no library is installed, or none takes this GPU, a part's rows say so and nothing has failed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product

from benchmarks.gpu.bench import Bench, CheckFailed, Row
from benchmarks.gpu.correctness import engine_checks
from benchmarks.gpu.engines import decode_on_device, does_not_fit, filled, full_engine, greedy_step
from benchmarks.gpu.measurements import PROMPTS, decode_figures, prefill_figures, prompt_of
from benchmarks.gpu.tensorrt_engines import libraries, make_tensorrt_engine
from benchmarks.models import random_tensors, step_bytes, weight_bytes, weights_from
from benchmarks.timing import device_milliseconds, in_turn
from trtstream.plugins.kv_cache import kv_bytes_per_session
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.settings import BuildConfig, ModelConfig

Engines = Mapping[str, StreamingEngine]
"""Engines of the same weights and sizes, by target."""


def tensorrt(bench: Bench) -> Iterator[Row]:
    """Each library: whether it runs on this GPU, and whether its engines compute what they should."""
    failed = 0
    for target in (yield from libraries(bench)):
        for row in engine_checks(partial(make_tensorrt_engine, target)):
            failed += not row["ok"]
            yield {"target": target, **row}
    if failed:
        raise CheckFailed(f"{failed} checks are outside their tolerances")


def tensorrt_decode(bench: Bench) -> Iterator[Row]:
    """What part ``decode`` measures, for every target in turn: full, wrapped sessions."""
    targets = yield from libraries(bench)
    if not targets:
        return
    for name, model in bench.sizes.tensorrt_models.items():
        for window in bench.sizes.windows:
            row = {"model": name, "window": window}
            num_bytes = {batch: _bytes(model, bench.build(window, batch), targets) for batch in bench.sizes.batches}
            fitting = [batch for batch in num_bytes if bench.fits(num_bytes[batch])]
            if fitting:
                engines = _engines(bench, model, bench.build(window, max(fitting)), targets)
            for batch in bench.sizes.batches:
                if batch in fitting:
                    yield from (row | figures for figures in decode_rows(bench, engines, batch))
                else:
                    yield row | {"batch": batch} | does_not_fit(num_bytes[batch], "weights and KV caches")
            engines = None


def tensorrt_prefill(bench: Bench) -> Iterator[Row]:
    """What part ``prefill`` measures, for every target in turn: a prompt of four chunks, past C all the way."""
    targets = yield from libraries(bench)
    if not targets:
        return
    for name, model in bench.sizes.tensorrt_models.items():
        for window, chunk in product(bench.sizes.main_windows, bench.sizes.chunks):
            row, build = {"model": name, "window": window}, bench.build(window, 1, chunk=chunk)
            if bench.fits(num_bytes := _bytes(model, build, targets)):
                engines = _engines(bench, model, build, targets)
                yield from (row | figures for figures in prefill_rows(bench, engines))
            else:
                yield row | {"chunk": chunk} | does_not_fit(num_bytes, "weights and KV caches")
            engines = None


def decode_rows(bench: Bench, engines: Engines, batch: int) -> Iterator[Row]:
    """A decode step of ``batch`` sessions: a row for each target, ``cuda`` among them."""
    steps = {target: greedy_step(engine, batch) for target, engine in engines.items()}
    host = in_turn(steps, bench.device, bench.sizes.calls)
    cuda = engines["cuda"]
    num_bytes = step_bytes(cuda.model, cuda.build, cuda.backend.weights, batch)
    for target, engine in engines.items():
        device = device_milliseconds(decode_on_device(engine, batch), bench.device, bench.sizes.calls)
        row = {"batch": batch, "target": target, **decode_figures(bench, num_bytes, batch, device, host[target])}
        row["times_cuda"] = row["end_to_end_ms"] / statistics.median(host["cuda"])
        yield row | {"cuda_graph": all(step.is_graph for step in engine.backend.steps)}


def prefill_rows(bench: Bench, engines: Engines) -> Iterator[Row]:
    """A prompt of one session: a row for each target, ``cuda`` among them."""
    chunk = engines["cuda"].build.max_num_tokens
    prompt = prompt_of(engines["cuda"].model, chunk)
    prefills = {target: partial(engine.prefill, 0, prompt) for target, engine in engines.items()}
    times = in_turn(prefills, bench.device, PROMPTS)
    for target in engines:
        row = {"chunk": chunk, "target": target, **prefill_figures(prompt, times[target])}
        yield row | {"times_cuda": row["ms"] / statistics.median(times["cuda"])}


def _engines(bench: Bench, model: ModelConfig, build: BuildConfig, targets: list[str]) -> Engines:
    """``cuda`` and the targets, with full caches. TensorRT's are built first, while the GPU's memory is free."""
    read = random_tensors(model, bench.dtype, bench.device)
    engines = {target: filled(make_tensorrt_engine(target, model, build, read)) for target in targets}
    return {"cuda": full_engine(model, build, weights_from(model, read)), **engines}


def _bytes(model: ModelConfig, build: BuildConfig, targets: list[str]) -> int:
    """Bytes of the weights and KV caches of all engines that are compared."""
    caches = sum(kv_bytes_per_session(model, build, target) for target in ("cuda", *targets)) * build.max_batch_size
    return (1 + len(targets)) * weight_bytes(model, build.dtype) + caches
