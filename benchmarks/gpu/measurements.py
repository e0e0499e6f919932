"""The parts that measure our own engine and kernels: bandwidth, decode, prefill, flatness, attention."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

from benchmarks.gpu.bench import FAR, Bench, Row, goal
from benchmarks.gpu.engines import (
    captured,
    decode_on_device,
    does_not_fit,
    full_engine,
    greedy_step,
    loaded_models,
    place_session,
)
from benchmarks.machine import gpu, machine
from benchmarks.models import step_bytes, weight_bytes
from benchmarks.timing import device_milliseconds, end_to_end_milliseconds, in_turn, summary
from trtstream.plugins.decode_plan import Step, plan_step
from trtstream.plugins.kv_cache import kv_bytes_per_session
from trtstream.plugins.positions import PositionEncoding
from trtstream.plugins.window import Window
from trtstream.settings import BuildConfig, ModelConfig

FLOOR_GOAL = 1.25  # times the floor
FLATNESS_GOAL = 0.05
PROMPTS = 5  # that a median is of


def environment(bench: Bench) -> Iterator[Row]:
    """What the figures were measured on."""
    yield machine() | (gpu() if bench.device.type == "cuda" else {})


def bandwidth(bench: Bench) -> Iterator[Row]:
    """What the memory gives: a copy on the device, counted both ways, and a sum."""
    yield {f"{name}_gb_per_s": value / 1e9 for name, value in bench.bandwidths.items()}


def decode(bench: Bench) -> Iterator[Row]:
    """A decode step of full, wrapped sessions: on the device alone, and until the host has the next tokens."""
    for name, model, weights in loaded_models(bench):
        if weights is None:
            yield {"model": name} | does_not_fit(weight_bytes(model, bench.sizes.dtype), "weights")
            continue
        for window in bench.sizes.windows:
            session_bytes = kv_bytes_per_session(model, bench.build(window, 1), "cuda")
            fitting = [batch for batch in bench.sizes.batches if bench.fits(batch * session_bytes)]
            if fitting:
                engine = full_engine(model, bench.build(window, max(fitting)), weights)
            for batch in bench.sizes.batches:
                row = {"model": name, "window": window, "batch": batch}
                if batch not in fitting:
                    yield row | does_not_fit(batch * session_bytes, "KV cache")
                    continue
                device = device_milliseconds(decode_on_device(engine, batch), bench.device, bench.sizes.calls)
                host = end_to_end_milliseconds(greedy_step(engine, batch), bench.device, bench.sizes.calls)
                row |= decode_figures(bench, step_bytes(model, engine.build, weights, batch), batch, device, host)
                if (name, window, batch) == (bench.sizes.main_model, 1024, 1):
                    met = row["end_to_end_to_floor"] <= FLOOR_GOAL
                    row |= goal(f"end to end at most {FLOOR_GOAL} x the floor", met)
                yield row
            engine = None
        del weights


def decode_figures(bench: Bench, num_bytes: int, batch: int, device: list[float], host: list[float]) -> Row:
    """Of steps that must read ``num_bytes``: milliseconds on the device alone and end to end, beside their floor."""
    floor, on_device, end_to_end = bench.floor_ms(num_bytes), summary(device), statistics.median(host)
    return {
        "read_gb": num_bytes / 1e9,
        "floor_ms": floor,
        **on_device,
        "end_to_end_ms": end_to_end,
        "to_floor": on_device["ms"] / floor,
        "end_to_end_to_floor": end_to_end / floor,
        "tokens_per_s": batch / end_to_end * 1e3,
    }


def prefill(bench: Bench) -> Iterator[Row]:
    """A prompt of one session, past C all the way, in chunks of ``max_num_tokens``."""
    for name, model, weights in loaded_models(bench):
        if weights is None:
            yield {"model": name} | does_not_fit(weight_bytes(model, bench.sizes.dtype), "weights")
            continue
        for window in bench.sizes.main_windows:
            for chunk in bench.sizes.chunks:
                engine = full_engine(model, bench.build(window, 1, chunk=chunk), weights)
                prompt = prompt_of(model, chunk)
                times = end_to_end_milliseconds(lambda e=engine, p=prompt: e.prefill(0, p), bench.device, PROMPTS)
                yield {"model": name, "window": window, "chunk": chunk, **prefill_figures(prompt, times)}
        del engine, weights


def prompt_of(model: ModelConfig, chunk: int) -> list[int]:
    """A prompt of four chunks."""
    return [token % model.vocab_size for token in range(4 * chunk)]


def prefill_figures(prompt: list[int], times: list[float]) -> Row:
    figures = summary(times)
    return {"tokens": len(prompt), **figures, "tokens_per_s": len(prompt) / figures["ms"] * 1e3}


def flatness(bench: Bench) -> Iterator[Row]:
    """Two sessions of one engine, at t = 2 W and at 4,000,000, stepped in turn."""
    window = bench.sizes.main_windows[0]
    for name, model, weights in loaded_models(bench):
        if weights is None:
            yield {"model": name} | does_not_fit(weight_bytes(model, bench.sizes.dtype), "weights")
            continue
        engine = full_engine(model, bench.build(window, 2), weights)
        place_session(engine, 1, FAR)
        steps = {"young": greedy_step(engine, 1), "old": greedy_step(engine, 1, first_lane=1)}
        times = in_turn(steps, bench.device, 4 * bench.sizes.calls)
        young, old = (statistics.median(times[which]) for which in ("young", "old"))
        row = {"model": name, "window": window, "young_ms": young, "old_ms": old, "old_to_young": old / young}
        yield row | goal(f"within {FLATNESS_GOAL:.0%}", abs(old / young - 1) <= FLATNESS_GOAL)
        del engine, weights


def attention(bench: Bench) -> Iterator[Row]:
    """The decode kernel alone, all layers of a step in one graph, against the keys and values that it must read.

    Caches that fit into the chip's own (tens of MB) may be read faster than the memory's floor.
    """
    for name, model in bench.sizes.models.items():
        for window in bench.sizes.windows:
            for batch in bench.sizes.batches:
                build = bench.build(window, batch)
                row = {"model": name, "window": window, "batch": batch}
                num_bytes = kv_bytes_per_session(model, build, "cuda") * batch
                if not bench.fits(num_bytes):
                    yield row | does_not_fit(num_bytes, "KV cache")
                    continue
                times = _attention_times(bench, model, build)
                floor = bench.floor_ms(num_bytes)
                row |= {"read_gb": num_bytes / 1e9, "floor_ms": floor, **summary(times)}
                yield row | {"to_floor": row["ms"] / floor, "us_per_layer": row["ms"] / model.num_hidden_layers * 1e3}


@torch.inference_mode()
def _attention_times(bench: Bench, model: ModelConfig, build: BuildConfig) -> list[float]:
    """Milliseconds on the device of all layers' attention, for a full batch of full sessions far past C."""
    batch, kv_heads, head_dim = build.max_batch_size, model.num_key_value_heads, model.head_dim
    layers, sinks = model.num_hidden_layers, build.max_sink_token_length
    like = {"dtype": bench.dtype, "device": bench.device}
    cache = torch.randn(batch, layers, 2, kv_heads, build.max_attention_window, head_dim, **like)
    qkv = torch.randn(batch, (model.num_attention_heads + 2 * kv_heads) * head_dim, **like)
    window = Window(build.sink_token_length, sinks, build.ring)
    steps = [Step(lane, window, FAR + lane, ring_first=window.sinks) for lane in range(batch)]
    plan = plan_step(PositionEncoding.of(model), steps)
    rows, rotation = plan.rows.to(bench.device), plan.rotation.to(bench.device)

    def run() -> None:
        for layer in range(layers):
            torch.ops.trtstream.decode_attention(qkv, cache[:, layer], rows, rotation, None, sinks)

    return device_milliseconds(captured(run, bench.device), bench.device, bench.sizes.calls)
