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

from benchmarks.gpu.bench import FAR, Bench, Case, goal
from benchmarks.gpu.engines import (
    Engines,
    batch_steps,
    captured,
    decode_on_device,
    does_not_fit,
    engine_bytes,
    fill,
    full_engine,
    full_engines,
    greedy_step,
    place_session,
)
from benchmarks.gpu.launches import Engine
from benchmarks.gpu.results import Row
from benchmarks.gpu.roofline import decode_step
from benchmarks.models import RandomCheckpoint
from benchmarks.timing import device_milliseconds, in_turn, summary
from trtstream.machine import machine
from trtstream.plugins.decode_plan import Step, plan_step
from trtstream.plugins.kv_cache import kv_bytes_per_session, new_cache
from trtstream.plugins.positions import PositionEncoding
from trtstream.plugins.window import Window
from trtstream.settings import BuildConfig, ModelConfig

FLOOR_GOAL = 1.2  # times the floor, end to end, at batch 1
BANDWIDTH_GOAL = 0.6  # of the bandwidth, at batch 64
GOAL_WINDOW = 1024
FLATNESS_GOAL = 0.05
PROMPTS = 5  # that a median is of
TOO_LARGE = "weights and KV caches"


def environment(bench: Bench) -> Iterator[Case]:
    """The machine, the GPU and the software."""
    yield Case({}, lambda: [machine() | (_gpu() if bench.device.type == "cuda" else {})])


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


def bandwidth(bench: Bench) -> Iterator[Case]:
    """The memory's bandwidth: of a copy on the device, reads and writes counted, and of a sum."""
    yield Case({}, lambda: [{f"{name}_gb_per_s": value / 1e9 for name, value in bench.bandwidths.items()}])


def decode(bench: Bench) -> Iterator[Case]:
    """A decode step of full, wrapped sessions: on the device alone, and until the host has the next tokens."""
    yield from decode_of(bench, bench.sizes.models, ["cuda"])


def decode_of(bench: Bench, models: Mapping[str, ModelConfig], targets: Sequence[str]) -> Iterator[Case]:
    """What part ``decode`` measures, for all ``targets`` in turn."""
    # Small batches first, which have most of the goals and compile the kernels of the others.
    for name, window, batch in product(models, bench.sizes.windows, bench.sizes.batches):
        model, build = models[name], bench.build(window, batch)
        labels = {"model": name, "window": window, "batch": batch}
        run = partial(_decode_rows, bench, model, build, targets)
        yield Case(labels, run, [Engine(model, build)])


def _decode_rows(bench: Bench, model: ModelConfig, build: BuildConfig, targets: Sequence[str]) -> Iterator[Row]:
    needed = engine_bytes(model, build, targets)
    if not bench.fits(needed):
        yield does_not_fit(needed, TOO_LARGE)
        return
    is_main = model == bench.main and build.max_attention_window == GOAL_WINDOW
    for row in decode_rows(bench, full_engines(bench, model, build, targets), build.max_batch_size):
        yield row | (decode_goal(row, build.max_batch_size) if is_main and row["target"] == "cuda" else {})


def decode_goal(row: Row, batch: int) -> Row:
    """The goal of a row of the main model at W = 1024; none for other batches than 1 and 64."""
    if batch == 1:
        reached = row["end_to_end_to_floor"]
        return goal(f"end to end at most {FLOOR_GOAL} x the floor", reached <= FLOOR_GOAL, reached, 1.0)
    if batch == 64:
        reached = row["floor_ms"] / row["ms"]
        return goal(f"at least {BANDWIDTH_GOAL:.0%} of the bandwidth", reached >= BANDWIDTH_GOAL, reached, 1.0)
    return {}


def decode_rows(bench: Bench, engines: Engines, batch: int) -> Iterator[Row]:
    """A decode step of ``batch`` sessions, a row for each target: on the device alone, end to end, and its floor.

    ``predicted_ms`` is the roofline's for the ``cuda`` target's launches at the measured bandwidth.
    """
    host = in_turn(
        {target: greedy_step(engine, batch) for target, engine in engines.items()}, bench.device, bench.sizes.calls
    )
    cuda = engines["cuda"]
    step = decode_step(Engine(cuda.model, cuda.build), batch, bench.multiprocessors)
    floor = bench.floor_ms(step.num_bytes)
    for target, engine in engines.items():
        device = summary(device_milliseconds(decode_on_device(engine, batch), bench.device, bench.sizes.calls))
        end_to_end = statistics.median(host[target])
        yield {
            "target": target,
            "read_gb": step.num_bytes / 1e9,
            "floor_ms": floor,
            "predicted_ms": step.predicted_ms(bench.attained_bandwidth),
            **device,
            "end_to_end_ms": end_to_end,
            "to_floor": device["ms"] / floor,
            "end_to_end_to_floor": end_to_end / floor,
            "tokens_per_s": batch / end_to_end * 1e3,
            "times_cuda": end_to_end / statistics.median(host["cuda"]),
            "cuda_graph": all(step.is_graph for step in batch_steps(engine)),
        }


def prefill(bench: Bench) -> Iterator[Case]:
    """A prompt of one session: short ones, and past C all the way in chunks of ``max_num_tokens``."""
    yield from prefill_of(bench, bench.sizes.models, ["cuda"])


def prefill_of(bench: Bench, models: Mapping[str, ModelConfig], targets: Sequence[str]) -> Iterator[Case]:
    """What part ``prefill`` measures, for all ``targets`` in turn."""
    for name, window, chunk in product(models, bench.sizes.main_windows, bench.sizes.chunks):
        model, build = models[name], bench.build(window, 1, chunk=chunk)
        labels = {"model": name, "window": window, "chunk": chunk}
        yield Case(labels, partial(_prefill_rows, bench, model, build, targets), [Engine(model, build)])


def _prefill_rows(bench: Bench, model: ModelConfig, build: BuildConfig, targets: Sequence[str]) -> Iterator[Row]:
    needed = engine_bytes(model, build, targets)
    if not bench.fits(needed):
        yield does_not_fit(needed, TOO_LARGE)
        return
    engines = full_engines(bench, model, build, targets)
    for length in (4 * build.max_num_tokens, *bench.sizes.short_prompts):
        yield from prefill_rows(bench, engines, length)


def prefill_rows(bench: Bench, engines: Engines, length: int) -> Iterator[Row]:
    """A prompt of ``length`` tokens, a row for each target."""
    prompt = [token % engines["cuda"].model.vocab_size for token in range(length)]
    prefills = {target: partial(engine.prefill, 0, prompt) for target, engine in engines.items()}
    times = {target: summary(taken) for target, taken in in_turn(prefills, bench.device, PROMPTS).items()}
    for target, figures in times.items():
        row = {"target": target, "tokens": length, **figures, "tokens_per_s": length / figures["ms"] * 1e3}
        yield row | {"times_cuda": figures["ms"] / times["cuda"]["ms"]}


def flatness(bench: Bench) -> Iterator[Case]:
    """Two sessions of one engine, at t = 2 W and at 4,000,000, stepped in turn."""
    for name, model in bench.sizes.models.items():
        build = bench.build(bench.sizes.main_windows[0], 2)
        labels = {"model": name, "window": build.max_attention_window}
        yield Case(labels, partial(_flatness_rows, bench, model, build), [Engine(model, build)])


def _flatness_rows(bench: Bench, model: ModelConfig, build: BuildConfig) -> Iterator[Row]:
    if not bench.fits(needed := engine_bytes(model, build, ["cuda"])):
        yield does_not_fit(needed, TOO_LARGE)
        return
    engine = full_engine(model, build, RandomCheckpoint(model, bench.dtype, bench.device).weights())
    place_session(engine, 1, FAR)
    steps = {"young": greedy_step(engine, 1), "old": greedy_step(engine, 1, first_lane=1)}
    times = in_turn(steps, bench.device, 4 * bench.sizes.calls)
    young, old = (statistics.median(times[which]) for which in ("young", "old"))
    row = {"young_ms": young, "old_ms": old, "old_to_young": old / young}
    yield row | goal(f"within {FLATNESS_GOAL:.0%}", abs(old / young - 1) <= FLATNESS_GOAL, old / young, 1.0)


def attention(bench: Bench) -> Iterator[Case]:
    """The decode kernel alone, all layers of a step in one graph, against the keys and values that it must read.

    Caches that fit into the chip's own (tens of MB) may be read faster than the memory's floor.
    """
    for name, window, batch in product(bench.sizes.models, bench.sizes.windows, bench.sizes.batches):
        model, build = bench.sizes.models[name], bench.build(window, batch)
        labels = {"model": name, "window": window, "batch": batch}
        yield Case(labels, partial(_attention_rows, bench, model, build), [Engine(model, build)])


def _attention_rows(bench: Bench, model: ModelConfig, build: BuildConfig) -> Iterator[Row]:
    num_bytes = kv_bytes_per_session(model, build, "cuda") * build.max_batch_size
    if not bench.fits(num_bytes):
        yield does_not_fit(num_bytes, "KV cache")
        return
    figures, floor = summary(_attention_times(bench, model, build)), bench.floor_ms(num_bytes)
    row = {"read_gb": num_bytes / 1e9, "floor_ms": floor, **figures, "to_floor": figures["ms"] / floor}
    yield row | {"us_per_layer": figures["ms"] / model.num_hidden_layers * 1e3}


@torch.inference_mode()
def _attention_times(bench: Bench, model: ModelConfig, build: BuildConfig) -> list[float]:
    """Milliseconds on the device of all layers' attention, for a full batch of full sessions far past C."""
    batch, sinks = build.max_batch_size, build.max_sink_token_length
    cache = new_cache(model, build, "cuda", bench.device)
    for session in cache:
        fill(session)
    width = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim
    qkv = torch.randn(batch, width, dtype=bench.dtype, device=bench.device)
    window = Window(build.sink_token_length, sinks, build.ring)
    steps = [Step(lane, window, FAR + lane, ring_first=window.sinks) for lane in range(batch)]
    plan = plan_step(PositionEncoding.of(model), steps)
    rows = plan.rows.to(bench.device)
    rotation = None if plan.rotation is None else plan.rotation.to(bench.device)

    arrivals = torch.zeros(batch * model.num_attention_heads, dtype=torch.int32, device=bench.device)

    def run() -> None:
        for layer in range(model.num_hidden_layers):
            torch.ops.trtstream.decode_attention(qkv, cache[:, layer], rows, rotation, None, arrivals, sinks)

    return device_milliseconds(captured(run, bench.device), bench.device, bench.sizes.calls)
