"""Part ``correctness``: the kernels against the definition in float64, and whole engines against the CPU's.

The sessions of a batch are where mistakes show: young, exactly full, wrapped, at position 4,000,000, with different
numbers of sinks, between padding rows. Each is also stepped alone, with its cache split over several programs. Each
error comes with its tolerance; in float32 a comparison must also fail when the reference's ring is one token shorter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F

from benchmarks.gpu.bench import FAR, Bench, Case
from benchmarks.gpu.engines import make_engine
from benchmarks.gpu.launches import Engine
from benchmarks.gpu.results import Row
from benchmarks.models import (
    FALCON_7B,
    FALCON_RW_1B,
    LLAMA_2_7B,
    LLAMA_3_8B,
    SMOLLM2,
    TINY_FALCON,
    TINY_FALCON_RW,
    TINY_LLAMA,
    RandomCheckpoint,
)
from trtstream.plugins.decode_plan import Step, step_rotation
from trtstream.plugins.kv_cache import head_dim, new_cache, stored_vectors, vectors_to_store
from trtstream.plugins.positions import PositionEncoding, rotate, rotation
from trtstream.plugins.reference import streaming_attention
from trtstream.plugins.window import Window
from trtstream.runtime.cuda import PADDING
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.settings import BuildConfig, ModelConfig

MAX_SINKS = 4
WINDOW = 32  # of whole engines
STEPS = 3  # decode steps at the end of each session
TOLERANCES = {"float32": 3e-5, "float16": 5e-3, "bfloat16": 4e-2}  # of values around 1: an error is absolute
# A number of a vector may round to its neighbour's, as its rotation may differ in the last bit.
KV_TOLERANCES = {"int8": 4e-2, "fp8": 0.3}
KV_DTYPE = "float16"  # of the engines and layouts whose caches are quantized

LAYOUTS = {
    "MHA 32/32 x 128 (Llama-2-7B)": LLAMA_2_7B,
    "GQA 32/8 x 128 (Llama-3-8B)": LLAMA_3_8B,
    "GQA 9/3 x 64 (SmolLM2-135M)": SMOLLM2,
    "MQA 71/1 x 64 (Falcon-7B)": FALCON_7B,
    "ALiBi 32/32 x 64 (Falcon-RW-1B)": FALCON_RW_1B,
}
BFLOAT16_LAYOUT = "GQA 32/8 x 128 (Llama-3-8B)"  # kernels take long to compile
KV_LAYOUTS = (BFLOAT16_LAYOUT, "ALiBi 32/32 x 64 (Falcon-RW-1B)")
ENGINE_KV_TOLERANCES = {"int8": 0.1, "fp8": 0.6}


@dataclass
class Session:
    """A session's tokens: its numbers t [T], ascending, where after the sinks a gap may lie."""

    where: str
    window: Window
    t: torch.Tensor
    qkv: torch.Tensor  # [T, (heads + 2 * kv_heads) * head_dim]

    @property
    def ring_first(self) -> int:
        return max(int(self.t[min(self.window.sinks, len(self.t) - 1)]), self.window.sinks)


def sessions(model: ModelConfig, max_window: int, dtype: str, device: torch.device) -> list[Session]:
    """Sessions with random queries, keys and values."""
    ring = max_window - MAX_SINKS
    width = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim
    generator = torch.Generator().manual_seed(0)

    def session(where: str, sinks: int, length: int, gap: int = 0) -> Session:
        t = torch.arange(length)
        qkv = torch.randn(length, width, generator=generator).to(device, getattr(torch, dtype))
        return Session(where, Window(sinks, MAX_SINKS, ring), torch.where(t < sinks, t, t + gap), qkv)

    return [
        session("below C", 2, ring // 2),
        session("exactly full", MAX_SINKS, ring + MAX_SINKS),
        session("just wrapped", 3, ring + 3 + STEPS - 1),
        session("wrapped, no sinks", 0, ring + ring // 4),
        session("past 4,000,000", 1, ring + ring // 4, gap=FAR),
        session("young, in its sinks", MAX_SINKS, STEPS + 1),
    ]


class CheckFailed(Exception):
    """A check that has no figure of its own failed."""


def correctness(bench: Bench) -> Iterator[Case]:
    window = bench.sizes.correctness_window
    for name, model in LAYOUTS.items():
        for dtype in TOLERANCES if name == BFLOAT16_LAYOUT else ("float32", "float16"):
            build = BuildConfig(max_attention_window=window, max_sink_token_length=MAX_SINKS, dtype=dtype)
            yield from _kernel_cases(bench, name, model, build)
            if name in KV_LAYOUTS and dtype == KV_DTYPE:
                for kv_dtype in bench.kv_dtypes:
                    yield from _kernel_cases(bench, name, model, replace(build, kv_dtype=kv_dtype))
    yield from engine_checks(partial(_cuda_engine, bench.device), (None, *bench.kv_dtypes))


def _kernel_cases(bench: Bench, name: str, model: ModelConfig, build: BuildConfig) -> Iterator[Case]:
    run = partial(_kernel_checks, model, build, bench.device)
    yield Case({"of": name, "window": build.max_attention_window} | _dtypes(build), run, [Engine(model, build)])


def _dtypes(build: BuildConfig) -> Row:
    """The labels of an engine's dtypes."""
    return {"dtype": build.dtype} | ({} if build.kv_dtype is None else {"kv_dtype": build.kv_dtype})


@torch.inference_mode()
def _kernel_checks(model: ModelConfig, build: BuildConfig, device: torch.device) -> Iterator[Row]:
    dtype, positions = build.dtype, PositionEncoding.of(model).to(device)
    tolerance = TOLERANCES[dtype] if build.kv_dtype is None else KV_TOLERANCES[build.kv_dtype]
    batch = sessions(model, build.max_attention_window, dtype, device)
    # A layer of a larger cache, as in an engine, full of what earlier sessions left: reading it would show.
    two_layers = replace(model, num_hidden_layers=2)
    cache = new_cache(two_layers, replace(build, max_batch_size=len(batch) + 1), "cuda", device)[:, 1]
    left = stored_vectors(cache)
    left[()] = vectors_to_store(torch.full(left.numbers.shape, 30.0, device=device), cache.dtype)
    found = [_feed(session, lane, cache, positions) for lane, session in enumerate(batch)]
    everyone = list(range(len(batch)))
    for number in range(STEPS):  # the last time each session alone, before that all together
        for lanes in [[lane] for lane in everyone] if number == STEPS - 1 else [everyone]:
            for lane, output in _step(batch, lanes, number, cache, positions):
                found[lane].append(output[None])

    worst: dict[str, tuple[float, str]] = {"chunk_attention": (0.0, ""), "decode_attention": (0.0, "")}
    least_if_shorter = dict.fromkeys(worst, math.inf)
    for session, outputs in zip(batch, found, strict=True):
        expected, if_shorter = (_reference(session, model, cache.dtype, session.window.ring - x) for x in (0, 1))
        output, fed = torch.cat(outputs), len(session.t) - STEPS
        for operator, part in (("chunk_attention", slice(0, fed)), ("decode_attention", slice(fed, None))):
            worst[operator] = max(worst[operator], (_error(output[part], expected[part]), session.where))
            if int(session.t[part][-1]) >= session.ring_first + session.window.ring - 1:
                error = _error(output[part], if_shorter[part])
                least_if_shorter[operator] = min(least_if_shorter[operator], error)
    for operator, (error, where) in worst.items():
        row: Row = {"check": operator, "off_by": error, "tolerance": tolerance, "worst_at": where}
        row["ok"] = error < tolerance
        if dtype == "float32":
            row["error_if_ring_were_shorter"] = least_if_shorter[operator]
            row["ok"] &= least_if_shorter[operator] > 3 * tolerance
        yield row


def _feed(session: Session, lane: int, cache: torch.Tensor, positions: PositionEncoding) -> list[torch.Tensor]:
    """All but the last tokens in chunks that begin inside the sinks, cross the wrap, and end before the gap in t.

    Each is padded to the longest.
    """
    window, end = session.window, len(session.t) - STEPS
    sinks = min(window.sinks, end)
    bounds = [0, sinks] if session.ring_first > window.sinks else [0, sinks // 2]
    bounds += [*range(bounds[-1] + window.ring // 3 + 1, end, window.ring // 3 + 1), end]
    outputs = []
    for first, last in pairwise(sorted(set(bounds))):
        t = torch.arange(int(session.t[first]), int(session.t[first]) + window.ring)
        at = torch.stack((t, t.clamp(max=window.capacity - 1)), 1).to(cache.device)
        rotation = step_rotation(positions, at) if positions.slopes is None else None
        chunk = F.pad(session.qkv[first:last], (0, 0, 0, len(t) - (last - first)))
        row = Step(lane, window, int(t[0]), session.ring_first).chunk(last - first)
        numbers = torch.tensor(row, device=cache.device)
        out = torch.ops.trtstream.chunk_attention(chunk, cache, numbers, rotation, positions.slopes, window.max_sinks)
        outputs.append(out[: last - first])
    return outputs


def _step(
    batch: list[Session], lanes: list[int], number: int, cache: torch.Tensor, positions: PositionEncoding
) -> Iterator[tuple[int, torch.Tensor]]:
    """Lane and output of the next token of each session in ``lanes``. Several have padding rows between and after."""
    rows, at, qkv = [], [], []
    for lane in lanes:
        session = batch[lane]
        index = len(session.t) - STEPS + number
        t = int(session.t[index])
        rows.append(Step(lane, session.window, t, session.ring_first).row())
        at.append((t, session.window.cache_position(t)))
        qkv.append(session.qkv[index])
        if len(lanes) > 1:
            rows.append(PADDING)
            at.append((0, 0))
            qkv.append(torch.full_like(qkv[-1], torch.nan))
    rotation = None if positions.slopes is not None else step_rotation(positions, torch.tensor(at, device=cache.device))
    heads = qkv[0].numel() // head_dim(cache) - 2 * cache.shape[-3]
    arrivals = torch.zeros(len(rows) * heads, dtype=torch.int32, device=cache.device)
    outputs = torch.ops.trtstream.decode_attention(
        torch.stack(qkv),
        cache,
        torch.tensor(rows, device=cache.device),
        rotation,
        positions.slopes,
        arrivals,
        MAX_SINKS,
    )
    if arrivals.any():
        raise CheckFailed("decode_attention: not all counts of arrivals are zero again")
    for row, output in zip(rows, outputs, strict=True):
        if row.lane >= 0:
            yield row.lane, output
        elif output.any():
            raise CheckFailed("decode_attention: the output of a padding row is not zero")


def _reference(session: Session, model: ModelConfig, kv_dtype: torch.dtype, ring: int) -> torch.Tensor:
    """The outputs [T, heads * head_dim] that the session must have, in float64, from the same rounded inputs.

    Of a quantized cache, from keys and values as they are after that.
    """
    device, heads, kv_heads = session.qkv.device, model.num_attention_heads, model.num_key_value_heads
    q, k, v = session.qkv.double().unflatten(1, (-1, model.head_dim)).split((heads, kv_heads, kv_heads), 1)
    positions = PositionEncoding.of(model).to(device)
    if kv_dtype.itemsize == 1:
        v = vectors_to_store(v, kv_dtype).float().double()
        if positions.frequencies is None:
            k = vectors_to_store(k, kv_dtype).float().double()
        else:  # keys are quantized as they are stored: rotated
            cos, sin = (x.unsqueeze(1) for x in rotation(session.t.to(device), positions.frequencies))
            k = rotate(vectors_to_store(rotate(k, cos, sin), kv_dtype).float().double(), cos, -sin)
    with device:  # the reference's own tensors go there, too
        outputs = streaming_attention(
            q,
            k,
            v,
            session.window.sinks,
            ring,
            positions.frequencies,
            positions.scale,
            session.t.to(device),
            positions.slopes,
        )
    return outputs.flatten(1)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference; an enormous one where something is not a number."""
    return (found.double() - expected).abs().nan_to_num(nan=1e9).max().item()


Maker = Callable[[RandomCheckpoint, BuildConfig], StreamingEngine]
"""Makes an engine of some target from tensors in the engine's dtype."""


def _cuda_engine(device: torch.device, checkpoint: RandomCheckpoint, build: BuildConfig) -> StreamingEngine:
    return make_engine(checkpoint.model, build, checkpoint.weights(device))


def engine_checks(make: Maker, kv_dtypes: Sequence[str | None] = (None,)) -> Iterator[Case]:
    """Whole engines of a target, in prefill and in decode, against the definition on the CPU."""
    for name, model in {"Llama": TINY_LLAMA, "Falcon": TINY_FALCON, "Falcon with ALiBi": TINY_FALCON_RW}.items():
        for dtype, tolerance in {"float32": 2e-4, "float16": 3e-2, "bfloat16": 0.2}.items():
            for kv_dtype in kv_dtypes if dtype == KV_DTYPE else (None,):
                build = engine_build(dtype, kv_dtype)
                labels = {"of": f"tiny {name}, 3 sessions, to 4 C", "window": WINDOW} | _dtypes(build)
                allowed = tolerance if kv_dtype is None else ENGINE_KV_TOLERANCES[kv_dtype]
                yield Case(labels, partial(_engine_check, model, build, allowed, make), [Engine(model, build)])


def engine_build(dtype: str, kv_dtype: str | None = None) -> BuildConfig:
    return BuildConfig(
        max_batch_size=4,
        max_num_tokens=24,
        max_attention_window=WINDOW,
        sink_token_length=4,
        max_sink_token_length=6,
        dtype=dtype,
        kv_dtype=kv_dtype,
    )


def _engine_check(model: ModelConfig, build: BuildConfig, tolerance: float, make: Maker) -> Iterator[Row]:
    error = _engine_error(model, build, make)
    row = {"check": "engine against the CPU in float32", "off_by": error, "tolerance": tolerance}
    yield row | {"ok": error < tolerance}


def _engine_error(model: ModelConfig, build: BuildConfig, make: Maker) -> float:
    """Largest difference of logits, in standard deviations of the logits."""
    dtype = build.dtype
    checkpoint = RandomCheckpoint(model, getattr(torch, dtype), torch.device("cpu"), std=0.2)
    on_cpu = make_engine(model, replace(build, dtype="float32"), checkpoint.weights(dtype=torch.float32))
    engines = make(checkpoint, build), on_cpu
    generator = torch.Generator().manual_seed(1)
    lengths = (3, 31, 128)
    prompts = [torch.randint(model.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    tokens = torch.randint(model.vocab_size, (8, len(lengths)), generator=generator).tolist()
    logits = []
    for engine in engines:
        outputs = []
        for lane, prompt in enumerate(prompts):
            engine.reset(lane, 2 * lane)
            outputs.append(engine.prefill(lane, prompt).cpu()[None])
        for step in tokens:  # a batch of three runs in a graph of four
            outputs.append(engine.decode([2, 0, 1], step).cpu())
        logits.append(torch.cat(outputs))
    found, expected = logits
    return _error(found, expected) / expected.std().item()
