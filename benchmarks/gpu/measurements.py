"""The parts that measure our own engine and kernels: bandwidth, decode, prefill, flatness, attention."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bench import FAR, Bench, Row, goal
from benchmarks.gpu.engines import (
    Engines,
    batch_steps,
    captured,
    decode_on_device,
    does_not_fit,
    engine_bytes,
    full_engine,
    full_engines,
    greedy_step,
    place_session,
)
from benchmarks.models import RandomCheckpoint, step_bytes
from benchmarks.timing import device_milliseconds, in_turn, summary
from trtstream.machine import machine
from trtstream.plugins.decode_plan import Step, plan_step
from trtstream.plugins.kv_cache import kv_bytes_per_session, new_cache
from trtstream.plugins.positions import PositionEncoding
from trtstream.plugins.window import Window
from trtstream.runtime.cuda import CudaBackend
from trtstream.settings import BuildConfig, ModelConfig

FLOOR_GOAL = 1.25  # times the floor
FLATNESS_GOAL = 0.05
PROMPTS = 5  # that a median is of
TOO_LARGE = "weights and KV caches"


def environment(bench: Bench) -> Iterator[Row]:
    """The machine, the GPU and the software."""
    yield machine() | (_gpu() if bench.device.type == "cuda" else {})


def _gpu() -> dict[str, Any]:
    import triton

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    try:
        driver = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        driver = None
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": driver.group() if driver else "unknown",
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }


def bandwidth(bench: Bench) -> Iterator[Row]:
    """The memory's bandwidth: of a copy on the device, reads and writes counted, and of a sum."""
    yield {f"{name}_gb_per_s": value / 1e9 for name, value in bench.bandwidths.items()}


def decode(bench: Bench) -> Iterator[Row]:
    """A decode step of full, wrapped sessions: on the device alone, and until the host has the next tokens."""
    for row in decode_of(bench, bench.sizes.models, ["cuda"]):
        if (row["model"], row["window"], row["batch"]) == (bench.sizes.main_model, 1024, 1) and "ms" in row:
            met = row["end_to_end_to_floor"] <= FLOOR_GOAL
            row |= goal(f"end to end at most {FLOOR_GOAL} x the floor", met)
        yield row


def decode_of(bench: Bench, models: Mapping[str, ModelConfig], targets: Sequence[str]) -> Iterator[Row]:
    """What part ``decode`` measures, for all ``targets`` in turn."""
    for (name, model), window in product(models.items(), bench.sizes.windows):
        needed = {batch: engine_bytes(model, bench.build(window, batch), targets) for batch in bench.sizes.batches}
        fitting = [batch for batch in needed if bench.fits(needed[batch])]
        engines = full_engines(bench, model, bench.build(window, max(fitting)), targets) if fitting else {}
        for batch in bench.sizes.batches:
            rows = decode_rows(bench, engines, batch) if batch in fitting else [does_not_fit(needed[batch], TOO_LARGE)]
            yield from ({"model": name, "window": window, "batch": batch} | row for row in rows)
        engines = {}


def decode_rows(bench: Bench, engines: Engines, batch: int) -> Iterator[Row]:
    """A decode step of ``batch`` sessions, a row for each target: on the device alone, end to end, and its floor."""
    host = in_turn(
        {target: greedy_step(engine, batch) for target, engine in engines.items()}, bench.device, bench.sizes.calls
    )
    cuda = engines["cuda"]
    assert isinstance(cuda.backend, CudaBackend)
    num_bytes = step_bytes(cuda.model, cuda.build, cuda.backend.weights, batch)
    floor = bench.floor_ms(num_bytes)
    for target, engine in engines.items():
        device = summary(device_milliseconds(decode_on_device(engine, batch), bench.device, bench.sizes.calls))
        end_to_end = statistics.median(host[target])
        yield {
            "target": target,
            "read_gb": num_bytes / 1e9,
            "floor_ms": floor,
            **device,
            "end_to_end_ms": end_to_end,
            "to_floor": device["ms"] / floor,
            "end_to_end_to_floor": end_to_end / floor,
            "tokens_per_s": batch / end_to_end * 1e3,
            "times_cuda": end_to_end / statistics.median(host["cuda"]),
            "cuda_graph": all(step.is_graph for step in batch_steps(engine)),
        }


def prefill(bench: Bench) -> Iterator[Row]:
    """A prompt of one session, past C all the way, in chunks of ``max_num_tokens``."""
    yield from prefill_of(bench, bench.sizes.models, ["cuda"])


def prefill_of(bench: Bench, models: Mapping[str, ModelConfig], targets: Sequence[str]) -> Iterator[Row]:
    """What part ``prefill`` measures, for all ``targets`` in turn."""
    for (name, model), window, chunk in product(models.items(), bench.sizes.main_windows, bench.sizes.chunks):
        build = bench.build(window, 1, chunk=chunk)
        needed = engine_bytes(model, build, targets)
        fits = bench.fits(needed)
        engines = full_engines(bench, model, build, targets) if fits else {}
        rows = prefill_rows(bench, engines) if fits else [does_not_fit(needed, TOO_LARGE)]
        yield from ({"model": name, "window": window, "chunk": chunk} | row for row in rows)
        engines = {}


def prefill_rows(bench: Bench, engines: Engines) -> Iterator[Row]:
    """A prompt of four chunks, a row for each target."""
    cuda = engines["cuda"]
    prompt = [token % cuda.model.vocab_size for token in range(4 * cuda.build.max_num_tokens)]
    prefills = {target: partial(engine.prefill, 0, prompt) for target, engine in engines.items()}
    times = {target: summary(taken) for target, taken in in_turn(prefills, bench.device, PROMPTS).items()}
    for target, figures in times.items():
        row = {"target": target, "tokens": len(prompt), **figures, "tokens_per_s": len(prompt) / figures["ms"] * 1e3}
        yield row | {"times_cuda": figures["ms"] / times["cuda"]["ms"]}


def flatness(bench: Bench) -> Iterator[Row]:
    """Two sessions of one engine, at t = 2 W and at 4,000,000, stepped in turn."""
    window = bench.sizes.main_windows[0]
    for name, model in bench.sizes.models.items():
        build = bench.build(window, 2)
        if not bench.fits(needed := engine_bytes(model, build, ["cuda"])):
            yield {"model": name} | does_not_fit(needed, TOO_LARGE)
            continue
        engine = full_engine(model, build, RandomCheckpoint(model, bench.dtype, bench.device).weights())
        place_session(engine, 1, FAR)
        steps = {"young": greedy_step(engine, 1), "old": greedy_step(engine, 1, first_lane=1)}
        times = in_turn(steps, bench.device, 4 * bench.sizes.calls)
        young, old = (statistics.median(times[which]) for which in ("young", "old"))
        row = {"model": name, "window": window, "young_ms": young, "old_ms": old, "old_to_young": old / young}
        yield row | goal(f"within {FLATNESS_GOAL:.0%}", abs(old / young - 1) <= FLATNESS_GOAL)
        del engine, steps


def attention(bench: Bench) -> Iterator[Row]:
    """The decode kernel alone, all layers of a step in one graph, against the keys and values that it must read.

    Caches that fit into the chip's own (tens of MB) may be read faster than the memory's floor.
    """
    for (name, model), window, batch in product(bench.sizes.models.items(), bench.sizes.windows, bench.sizes.batches):
        build = bench.build(window, batch)
        row = {"model": name, "window": window, "batch": batch}
        num_bytes = kv_bytes_per_session(model, build, "cuda") * batch
        if not bench.fits(num_bytes):
            yield row | does_not_fit(num_bytes, "KV cache")
            continue
        figures, floor = summary(_attention_times(bench, model, build)), bench.floor_ms(num_bytes)
        row |= {"read_gb": num_bytes / 1e9, "floor_ms": floor, **figures, "to_floor": figures["ms"] / floor}
        yield row | {"us_per_layer": figures["ms"] / model.num_hidden_layers * 1e3}


@torch.inference_mode()
def _attention_times(bench: Bench, model: ModelConfig, build: BuildConfig) -> list[float]:
    """Milliseconds on the device of all layers' attention, for a full batch of full sessions far past C."""
    batch, sinks = build.max_batch_size, build.max_sink_token_length
    cache = new_cache(model, build, "cuda", bench.device).normal_()
    width = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim
    qkv = torch.randn(batch, width, dtype=bench.dtype, device=bench.device)
    window = Window(build.sink_token_length, sinks, build.ring)
    steps = [Step(lane, window, FAR + lane, ring_first=window.sinks) for lane in range(batch)]
    plan = plan_step(PositionEncoding.of(model), steps)
    rows = plan.rows.to(bench.device)
    rotation = None if plan.rotation is None else plan.rotation.to(bench.device)

    def run() -> None:
        for layer in range(model.num_hidden_layers):
            torch.ops.trtstream.decode_attention(qkv, cache[:, layer], rows, rotation, None, sinks)

    return device_milliseconds(captured(run, bench.device), bench.device, bench.sizes.calls)
