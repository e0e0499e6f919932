"""The parts that compare our engine: with recompute, whole-cache rotation, torch.compile and torch's products."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.baselines import WholeCacheRotation, recompute
from benchmarks.gpu.bench import Bench, Row, goal
from benchmarks.gpu.engines import captured, full_engine, greedy_step
from benchmarks.models import RandomCheckpoint, quantized, step_bytes
from benchmarks.timing import device_milliseconds, in_turn
from trtstream.plugins.decode_plan import Step
from trtstream.plugins.kv_cache import new_cache
from trtstream.plugins.positions import PositionEncoding
from trtstream.plugins.quantized_linear import quantized_linear
from trtstream.plugins.quantized_weight import GROUP, QuantizedWeight, dequantize, quantize
from trtstream.plugins.window import Window
from trtstream.runtime.cuda import DecodeStep
from trtstream.runtime.decoder import DecoderWeights
from trtstream.settings import BuildConfig, ModelConfig

# At W = 4096. The paper's own: 22.2 times recompute with Llama-2-13B, 21.7 with Llama-2-7B.
SPEEDUP_GOALS = {"recompute": 22.2, "whole-cache rotation": 5.0}
GOAL_WINDOW = 4096


def methods(bench: Bench) -> Iterator[Row]:
    """Ours, recompute and whole-cache rotation in turn: a full window, one session, until the host has the token."""
    model = bench.main
    weights = RandomCheckpoint(model, bench.dtype, bench.device).weights()
    recompute_by, recomputed = recompute(model, weights)
    for window in bench.sizes.main_windows:
        engine = full_engine(model, bench.build(window, 1), weights)
        rotating = WholeCacheRotation(model, weights, engine.build.sink_token_length, engine.build.ring)
        rotating.fill()
        visible = torch.arange(window, device=bench.device) % model.vocab_size
        runs: dict[str, Callable[[], object]] = {
            "ours": greedy_step(engine, 1),
            "recompute": partial(_greedy, recomputed, visible),
            "whole-cache rotation": partial(_greedy, rotating.step, visible[-1:]),
        }
        times = in_turn(runs, bench.device, max(bench.sizes.calls // 3, 3))
        ours = statistics.median(times["ours"])
        for name, taken in times.items():
            median = statistics.median(taken)
            row: Row = {"model": bench.sizes.main_model, "window": window, "method": name, "ms": median}
            if name == "recompute":
                row["by"] = recompute_by
            row["times_ours"] = median / ours
            if window == GOAL_WINDOW and name in SPEEDUP_GOALS:
                wanted = SPEEDUP_GOALS[name]
                row |= goal(f"ours at least {wanted} x faster", median / ours >= wanted)
            yield row


def _greedy(logits: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> int:
    return int(logits(tokens).argmax())


def compilation(bench: Bench) -> Iterator[Row]:
    """The decode step compiled by torch.compile against the eager one that we run; both in a CUDA graph, in turn."""
    build = bench.build(bench.sizes.main_windows[0], 1)
    shallow = replace(bench.main, num_hidden_layers=bench.sizes.compiled_layers)
    weights = RandomCheckpoint(shallow, bench.dtype, bench.device).weights()
    runs, logits = {}, {}
    for name in ("eager", "torch.compile"):
        step, inputs = _decode_step(shallow, build, weights)
        if name == "torch.compile":
            step.compile(fullgraph=True, dynamic=False, backend="inductor" if inputs[0].is_cuda else "aot_eager")
        with torch.inference_mode():
            logits[name] = step(*inputs).clone()
        runs[name] = captured(partial(step, *inputs), bench.device)
    times = in_turn(runs, bench.device, bench.sizes.calls)
    eager = statistics.median(times["eager"])
    for name, taken in times.items():
        row = {"step": name, "layers": shallow.num_hidden_layers, "window": build.max_attention_window}
        row |= {"ms": statistics.median(taken), "to_eager": statistics.median(taken) / eager}
        difference = (logits[name] - logits["eager"]).abs().max() / logits["eager"].std()
        yield row | {"logits_off_by_sigmas": difference.item()}


def _decode_step(
    model: ModelConfig, build: BuildConfig, weights: DecoderWeights
) -> tuple[DecodeStep, tuple[torch.Tensor, ...]]:
    """The decode step of one full session at t = 2 W, and its inputs on the device."""
    device = weights.embedding.device
    cache = new_cache(model, build, "cuda", device).normal_(generator=torch.Generator(device).manual_seed(0))
    window = Window(build.sink_token_length, build.max_sink_token_length, build.ring)
    t = 2 * build.max_attention_window
    step = Step(0, window, t, ring_first=window.sinks)
    inputs = ([1], [step.row()], [[t, window.cache_position(t)]])
    module = DecodeStep(model, weights, PositionEncoding.of(model).to(device), cache, window.max_sinks)
    return module, tuple(torch.tensor(values, device=device) for values in inputs)


def quantization(bench: Bench) -> Iterator[Row]:
    """Decode with int8 and int4 weights against 16-bit ones, in turn, until the host has the token; batch 1."""
    build = bench.build(bench.sizes.main_windows[0], 1)
    weights = RandomCheckpoint(bench.main, bench.dtype, bench.device).weights()
    engines, sizes = {}, {}
    for name in (bench.sizes.dtype, "int8", "int4"):
        changed = weights if name == bench.sizes.dtype else quantized(weights, name)
        engines[name] = full_engine(bench.main, build, changed)
        sizes[name] = step_bytes(bench.main, build, changed, 1)
    times = in_turn({name: greedy_step(engine, 1) for name, engine in engines.items()}, bench.device, bench.sizes.calls)
    unquantized = statistics.median(times[bench.sizes.dtype])
    for name, taken in times.items():
        median, floor = statistics.median(taken), bench.floor_ms(sizes[name])
        row = {"model": bench.sizes.main_model, "weights": name, "window": build.max_attention_window, "ms": median}
        row |= {f"to_{bench.sizes.dtype}": median / unquantized}
        yield row | {"read_gb": sizes[name] / 1e9, "floor_ms": floor, "to_floor": median / floor}


def products(bench: Bench) -> Iterator[Row]:
    """One token times a projection in each weight format: our kernel, torch's own product, and 16 bits, in turn."""
    generator = torch.Generator(bench.device).manual_seed(0)
    checkpoint = RandomCheckpoint(bench.main, bench.dtype, bench.device)
    for projection in ("qkv", "attention_output", "gate_up", "down"):
        weight = checkpoint.random_tensor(f"layers.0.{projection}.weight")
        rows, columns = weight.shape
        x = weight.new_empty(1, columns).normal_(generator=generator)
        for name in ("int8", "int4"):
            made = quantize(weight, name, bench.dtype)
            runs: dict[str, Callable[[], torch.Tensor]] = {
                bench.sizes.dtype: partial(F.linear, x, weight),
                "ours": partial(quantized_linear, x, *made),
            }
            row: Row = {"projection": projection, "rows": rows, "columns": columns, "weights": name}
            try:
                product = torchs_product(x, made)
                product()
                runs["torch"] = product
            except RuntimeError as error:
                yield row | {"by": "torch", "refused": str(error).splitlines()[0]}
            times = {by: device_milliseconds(run, bench.device, bench.sizes.calls) for by, run in runs.items()}
            expected = F.linear(x, dequantize(made, bench.dtype))
            ours = statistics.median(times["ours"])
            for by, taken in times.items():
                off = (runs[by]() - expected).float().std() / expected.float().std()
                found = {"by": by, "ms": statistics.median(taken), "times_ours": statistics.median(taken) / ours}
                yield row | found | {"off_by_sigmas": off.item()}


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
