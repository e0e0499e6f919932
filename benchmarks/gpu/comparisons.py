"""The parts that compare our engine: with recompute, whole-cache rotation, torch.compile and torch's products."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from unittest.mock import patch

import torch
import torch.nn.functional as F

from benchmarks.baselines import WholeCacheRotation, recomputes
from benchmarks.gpu.bench import Bench, Case, goal
from benchmarks.gpu.engines import captured, does_not_fit, engine_bytes, fill, full_engine, greedy_step
from benchmarks.gpu.launches import Engine
from benchmarks.gpu.results import Row
from benchmarks.models import RandomCheckpoint, quantized, step_bytes
from benchmarks.timing import device_milliseconds, in_turn
from trtstream.plugins import cuda_chain
from trtstream.plugins.decode_plan import Step
from trtstream.plugins.kv_cache import kv_bytes_per_session, new_cache
from trtstream.plugins.positions import PositionEncoding
from trtstream.plugins.quantized_linear import quantized_linear
from trtstream.plugins.quantized_weight import GROUP, QuantizedWeight, dequantize, quantize
from trtstream.plugins.window import Window
from trtstream.runtime import decoder
from trtstream.runtime.cuda import DecodeStep
from trtstream.runtime.decoder import DecoderWeights
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.settings import BuildConfig, ModelConfig

# No method that reads 16-bit weights can beat recompute by more than recompute / floor, which depends on the GPU's
# arithmetic. So the goal is a part of that: ours within 1.2 x the floor.
PART_OF_BOUND = 1 / 1.2


def methods(bench: Bench) -> Iterator[Case]:
    """Ours, recompute and whole-cache rotation in turn: a full window, one session, until the host has the token."""
    for window in bench.sizes.main_windows:
        build = bench.build(window, 1)
        labels = {"model": bench.sizes.main_model, "window": window}
        yield Case(labels, partial(_methods_rows, bench, build), [Engine(bench.main, build)])


def _methods_rows(bench: Bench, build: BuildConfig) -> Iterator[Row]:
    model = bench.main
    weights = RandomCheckpoint(model, bench.dtype, bench.device).weights()
    engine = full_engine(model, build, weights)
    rotating = WholeCacheRotation(model, weights, build.sink_token_length, build.ring)
    rotating.fill()
    visible = torch.arange(build.max_attention_window, device=bench.device) % model.vocab_size
    runs: dict[str, Callable[[], object]] = {"ours": greedy_step(engine, 1)}
    for by, recomputed in recomputes(model, weights).items():
        runs[f"recompute ({by})"] = partial(_greedy, recomputed, visible)
    runs["whole-cache rotation"] = partial(_greedy, rotating.step, visible[-1:])
    times = in_turn(runs, bench.device, max(bench.sizes.calls // 3, 3))
    floor = bench.floor_ms(step_bytes(model, build, weights, 1))
    ours = statistics.median(times["ours"])
    for name, taken in times.items():
        median = statistics.median(taken)
        row: Row = {"method": name, "ms": median, "times_ours": median / ours}
        if name != "ours":
            bound = median / floor
            met = median / ours >= PART_OF_BOUND * bound
            row |= goal("ours faster by at least 1 / 1.2 of what the floor allows", met, median / ours, bound)
        yield row


def _greedy(logits: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> int:
    return int(logits(tokens).argmax())


STEPS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "ours": nullcontext,
    "unchained": partial(patch.object, cuda_chain, "CAPABILITY", (99, 0)),
}
"""What is changed for a step of our own; the others are torch's products."""


def compilation(bench: Bench) -> Iterator[Case]:
    """Our decode step against torch's operators, as they are and compiled; all in CUDA graphs, on the device.

    ``unchained`` is ours where no kernel begins before the last one has ended.
    ``coordinate descent`` is torch.compile with that tuning, without which it leaves products of one row to cuBLAS.
    """
    build = bench.build(bench.sizes.main_windows[0], 1)
    shallow = replace(bench.main, num_hidden_layers=bench.sizes.compiled_layers)
    labels = {"layers": shallow.num_hidden_layers, "window": build.max_attention_window}
    yield Case(labels, partial(_compilation_rows, bench, shallow, build), [Engine(shallow, build)])


def _compilation_rows(bench: Bench, model: ModelConfig, build: BuildConfig) -> Iterator[Row]:
    weights = RandomCheckpoint(model, bench.dtype, bench.device).weights()
    ours, expected = 0.0, torch.empty(0)
    for name in ("ours", "unchained", "torch", "torch.compile", "coordinate descent"):
        step, inputs = _decode_step(model, build, weights)
        compiles = name not in (*STEPS, "torch")
        if compiles:
            options = {"coordinate_descent_tuning": True} if name == "coordinate descent" else {}
            backend = "inductor" if inputs[0].is_cuda else "aot_eager"
            step.compile(fullgraph=True, dynamic=False, backend=backend, options=options if inputs[0].is_cuda else None)
        change = STEPS.get(name, partial(patch.object, decoder, "KERNEL_TOKENS", 0))()
        try:
            with torch.inference_mode(), change:
                logits = step(*inputs).clone()
                run = captured(partial(step, *inputs), bench.device)
                median = statistics.median(device_milliseconds(run, bench.device, bench.sizes.calls))
        except Exception as error:  # of Inductor: the other one may work
            if not compiles:
                raise
            yield {"step": name, "note": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
            continue
        if name == "ours":
            ours, expected = median, logits
        difference = (logits - expected).abs().max() / expected.std()
        yield {"step": name, "ms": median, "times_ours": median / ours, "logits_off_by_sigmas": difference.item()}


def _decode_step(
    model: ModelConfig, build: BuildConfig, weights: DecoderWeights
) -> tuple[DecodeStep, tuple[torch.Tensor, ...]]:
    """The decode step of one full session at t = 2 W, and its inputs on the device."""
    device = weights.float_embedding.device
    cache = new_cache(model, build, "cuda", device)
    fill(cache[0])
    window = Window(build.sink_token_length, build.max_sink_token_length, build.ring)
    t = 2 * build.max_attention_window
    step = Step(0, window, t, ring_first=window.sinks)
    inputs = ([1], [step.row()], [[t, window.cache_position(t)]])
    module = DecodeStep(model, weights, PositionEncoding.of(model).to(device), cache, window.max_sinks)
    return module, tuple(torch.tensor(values, device=device) for values in inputs)


def quantization(bench: Bench) -> Iterator[Case]:
    """Decode with int8 and int4 weights against 16-bit ones, in turn, until the host has the token; batch 1."""
    build = bench.build(bench.sizes.main_windows[0], 1)
    labels = {"model": bench.sizes.main_model, "window": build.max_attention_window}
    engines = [Engine(bench.main, build, quantization) for quantization in (None, "int8", "int4")]
    yield Case(labels, partial(_quantization_rows, bench, build), engines)


def _quantization_rows(bench: Bench, build: BuildConfig) -> Iterator[Row]:
    weights = RandomCheckpoint(bench.main, bench.dtype, bench.device).weights()
    engines, sizes = {}, {}
    for name in (bench.sizes.dtype, "int8", "int4"):
        changed = weights if name == bench.sizes.dtype else quantized(weights, name)
        engines[name] = full_engine(bench.main, build, changed)
        sizes[name] = step_bytes(bench.main, build, changed, 1)
    for name, row in _step_rows(bench, engines, sizes, 1):
        yield {"weights": name} | row


def kv_dtypes(bench: Bench) -> Iterator[Case]:
    """Decode with 8-bit KV caches against a 16-bit one, in turn, until the host has the tokens."""
    for window, batch in product(bench.sizes.main_windows, bench.sizes.batches):
        builds = [replace(bench.build(window, batch), kv_dtype=name) for name in (None, *bench.kv_dtypes)]
        labels = {"model": bench.sizes.main_model, "window": window, "batch": batch}
        engines = [Engine(bench.main, build) for build in builds]
        yield Case(labels, partial(_kv_rows, bench, builds, batch), engines)


def _kv_rows(bench: Bench, builds: list[BuildConfig], batch: int) -> Iterator[Row]:
    needed = engine_bytes(bench.main, builds[0], ["cuda"])
    needed += sum(kv_bytes_per_session(bench.main, build, "cuda") * batch for build in builds[1:])
    if not bench.fits(needed):
        yield does_not_fit(needed, "weights and KV caches")
        return
    weights = RandomCheckpoint(bench.main, bench.dtype, bench.device).weights()
    engines, sizes = {}, {}
    for build in builds:
        name = build.kv_dtype or bench.sizes.dtype
        engines[name] = full_engine(bench.main, build, weights)
        sizes[name] = step_bytes(bench.main, build, weights, batch)
    for name, row in _step_rows(bench, engines, sizes, batch):
        yield {"kv_dtype": name} | row


def _step_rows(
    bench: Bench, engines: dict[str, StreamingEngine], sizes: dict[str, int], batch: int
) -> Iterator[tuple[str, Row]]:
    """The names and rows of engines that step in turn; the one of the plain dtype is what the others are held against.

    ``sizes`` are the bytes that a step of each reads.
    """
    steps = {name: greedy_step(engine, batch) for name, engine in engines.items()}
    times = in_turn(steps, bench.device, bench.sizes.calls)
    plain = statistics.median(times[bench.sizes.dtype])
    for name, taken in times.items():
        median, floor = statistics.median(taken), bench.floor_ms(sizes[name])
        row: Row = {"ms": median, f"to_{bench.sizes.dtype}": median / plain}
        yield name, row | {"read_gb": sizes[name] / 1e9, "floor_ms": floor, "to_floor": median / floor}


def products(bench: Bench) -> Iterator[Case]:
    """One token times a projection in each weight format: our kernel, torch's own product, and 16 bits.

    Each is a CUDA graph of as many products as there are copies of the weight, which are more than the L2 cache holds.
    """
    engine = Engine(bench.main, bench.build(bench.sizes.main_windows[0], 1))
    for projection in ("qkv", "attention_output", "gate_up", "down"):
        for name in (bench.sizes.dtype, "int8", "int4"):
            labels = {"projection": projection, "weights": name}
            run = partial(_products_rows, bench, projection, name)
            yield Case(labels, run, [engine if name == bench.sizes.dtype else engine._replace(quantization=name)])


Product = Callable[[], torch.Tensor]


def _products_rows(bench: Bench, projection: str, name: str) -> Iterator[Row]:
    weight = RandomCheckpoint(bench.main, bench.dtype, bench.device).random_tensor(f"layers.0.{projection}.weight")
    rows, columns = weight.shape
    x = weight.new_empty(1, columns).normal_(generator=torch.Generator(bench.device).manual_seed(0))
    if name == bench.sizes.dtype:
        expected, num_bytes = F.linear(x, weight), _bytes(weight)
        makers = _float_products(bench.main, x, weight)
    else:
        made = quantize(weight, name, bench.dtype)
        expected, num_bytes = F.linear(x, dequantize(made, bench.dtype)), sum(map(_bytes, made))
        makers = _quantized_products(x, made) | {bench.sizes.dtype: lambda: partial(F.linear, x, weight.clone())}
    copies = -(-bench.sizes.weight_copies_bytes // num_bytes)
    ours = 0.0
    for by, make in makers.items():
        row: Row = {"rows": rows, "columns": columns, "by": by}
        try:
            runs = [make() for _ in range(copies)]
            off = (runs[0]() - expected).float().std() / expected.float().std()
            graph = captured(partial(_run_all, runs), bench.device)
        except RuntimeError as error:
            if by != "torch":
                raise
            yield row | {"refused": str(error).splitlines()[0]}
            continue
        taken = statistics.median(device_milliseconds(graph, bench.device, bench.sizes.calls)) / copies
        ours = ours or taken
        yield row | {"copies": copies, "ms": taken, "times_ours": taken / ours, "off_by_sigmas": off.item()}


def _float_products(model: ModelConfig, x: torch.Tensor, weight: torch.Tensor) -> dict[str, Callable[[], Product]]:
    """Makers of products, each with a copy of the weight."""
    return {
        "ours": lambda: partial(decoder.project, x, decoder.Projection(weight.clone(), None), model),
        "torch": lambda: partial(F.linear, x, weight.clone()),
    }


def _quantized_products(x: torch.Tensor, weight: QuantizedWeight) -> dict[str, Callable[[], Product]]:
    return {
        "ours": lambda: partial(quantized_linear, x, *_copy(weight)),
        "torch": lambda: torchs_product(x, _copy(weight)),
    }


def _run_all(runs: list[Callable[[], torch.Tensor]]) -> None:
    for run in runs:
        run()


def _copy(weight: QuantizedWeight) -> QuantizedWeight:
    zeros = None if weight.zeros is None else weight.zeros.clone()
    return QuantizedWeight(weight.values.clone(), weight.scales.clone(), zeros)


def _bytes(x: torch.Tensor | None) -> int:
    return 0 if x is None else x.numel() * x.element_size()


def torchs_product(x: torch.Tensor, weight: QuantizedWeight) -> Callable[[], torch.Tensor]:
    """The product by torch's own operator for the format, on a weight in its own packing; int4 in bfloat16."""
    if weight.zeros is None:
        return partial(torch._weight_int8pack_mm, x, weight.values, weight.scales.flatten().to(x.dtype))
    packed = weight.values.unflatten(1, (-1, GROUP))
    nibbles = torch.stack((packed & 15, packed >> 4), dim=2).flatten(1)  # [out, in]
    # torch counts from -8, and takes scales and zeros as pairs: [in / GROUP, out, 2].
    shifted = weight.zeros + 8 * weight.scales
    scales = torch.stack((weight.scales, shifted), dim=2).transpose(0, 1).contiguous()
    if not x.is_cuda:
        weight_for_cpu = torch._convert_weight_to_int4pack_for_cpu(nibbles.int(), 8)
        return partial(torch._weight_int4pack_mm_for_cpu, x, weight_for_cpu, GROUP, scales)
    packed = torch._convert_weight_to_int4pack(nibbles[:, ::2] << 4 | nibbles[:, 1::2], 8)
    return partial(torch._weight_int4pack_mm, x.bfloat16(), packed, GROUP, scales.bfloat16())
