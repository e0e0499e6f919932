"""Part ``correctness``: the kernels against the definition in float64, and whole engines against the CPU's.

Sessions of one batch stand where mistakes show: young, exactly full, wrapped, at position 4,000,000, with other numbers
of sinks, between padding rows; and each is stepped alone, when its cache is split over several programs. Every figure
has its tolerance beside it; in float32 each comparison must also fail when the reference's ring is one token shorter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import torch

from benchmarks.gpu.bench import FAR, Bench, CheckFailed, Row
from benchmarks.gpu.engines import make_engine
from benchmarks.models import TINY_FALCON, TINY_FALCON_RW, TINY_LLAMA, Reader, random_tensors, weights_from
from trtstream.plugins.decode_plan import Step, step_rotation
from trtstream.plugins.positions import PositionEncoding, alibi_slopes, inverse_frequencies
from trtstream.plugins.reference import streaming_attention
from trtstream.plugins.window import Window
from trtstream.runtime.cuda import PADDING
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.settings import BuildConfig, ModelConfig, RopeConfig

MAX_SINKS = 4
STEPS = 3  # decode steps at the end of each session
TOLERANCES = {"float32": 3e-5, "float16": 5e-3, "bfloat16": 4e-2}  # of values around 1: an error is absolute


@dataclass(frozen=True)
class Layout:
    heads: int
    kv_heads: int
    head_dim: int
    alibi: bool = False

    def positions(self) -> PositionEncoding:
        if self.alibi:
            return PositionEncoding(slopes=alibi_slopes(self.heads) * self.head_dim**-0.5)
        return PositionEncoding(*inverse_frequencies(RopeConfig(), self.head_dim))


LAYOUTS = {
    "MHA 32/32 x 128 (Llama-2-7B)": Layout(32, 32, 128),
    "GQA 32/8 x 128 (Llama-3-8B)": Layout(32, 8, 128),
    "GQA 9/3 x 64 (SmolLM2-135M)": Layout(9, 3, 64),
    "MQA 71/1 x 64 (Falcon-7B)": Layout(71, 1, 64),
    "ALiBi 32/32 x 64 (Falcon-RW-1B)": Layout(32, 32, 64, alibi=True),
}
BFLOAT16_LAYOUT = "GQA 32/8 x 128 (Llama-3-8B)"  # kernels take long to compile


@dataclass
class Session:
    """A session's tokens: its numbers t [T], ascending, where after the sinks a gap may lie."""

    where: str
    window: Window
    t: torch.Tensor
    qkv: torch.Tensor | None = None  # [T, (heads + 2 * kv_heads) * head_dim]

    @property
    def ring_first(self) -> int:
        return max(int(self.t[min(self.window.sinks, len(self.t) - 1)]), self.window.sinks)


def sessions(max_window: int) -> list[Session]:
    ring = max_window - MAX_SINKS

    def session(where: str, sinks: int, length: int, gap: int = 0) -> Session:
        window = Window(sinks, MAX_SINKS, ring)
        t = torch.arange(length)
        return Session(where, window, torch.where(t < sinks, t, t + gap))

    return [
        session("below C", 2, ring // 2),
        session("exactly full", MAX_SINKS, ring + MAX_SINKS),
        session("just wrapped", 3, ring + 3 + STEPS - 1),
        session("wrapped, no sinks", 0, ring + ring // 4),
        session("past 4,000,000", 1, ring + ring // 4, gap=FAR),
        session("young, in its sinks", MAX_SINKS, STEPS + 1),
    ]


def correctness(bench: Bench) -> Iterator[Row]:
    failed = 0
    for row in chain(_kernels(bench), _engines(bench)):
        failed += not row["ok"]
        yield row
    if failed:
        raise CheckFailed(f"{failed} checks are outside their tolerances")


def _kernels(bench: Bench) -> Iterator[Row]:
    for name, layout in LAYOUTS.items():
        for dtype in TOLERANCES if name == BFLOAT16_LAYOUT else ("float32", "float16"):
            yield from _kernels_of(name, layout, bench.sizes.correctness_window, dtype, bench.device)


@torch.inference_mode()
def _kernels_of(name: str, layout: Layout, max_window: int, dtype: str, device: torch.device) -> Iterator[Row]:
    batch = sessions(max_window)
    generator = torch.Generator().manual_seed(0)
    width = (layout.heads + 2 * layout.kv_heads) * layout.head_dim
    shape = (len(batch) + 1, 2, 2, layout.kv_heads, max_window, layout.head_dim)
    # A layer of a larger cache, as in an engine, with what earlier sessions left: it would show if it were read.
    cache = torch.full(shape, 30.0, dtype=getattr(torch, dtype), device=device)[:, 1]
    positions = layout.positions().to(device)
    found = []
    for lane, session in enumerate(batch):
        session.qkv = torch.randn(len(session.t), width, generator=generator).to(device, cache.dtype)
        found.append(_feed(session, lane, cache, positions))
    for number in range(STEPS):
        last = number == STEPS - 1  # each session alone; before, all together
        together = [[lane] for lane in range(len(batch))] if last else [list(range(len(batch)))]
        for lanes in together:
            for lane, output in _step(batch, lanes, number, cache, positions):
                found[lane].append(output[None])

    worst: dict[str, tuple[float, str]] = {"chunk_attention": (0.0, ""), "decode_attention": (0.0, "")}
    least_if_shorter = dict.fromkeys(worst, math.inf)
    for session, outputs in zip(batch, found, strict=True):
        expected, if_shorter = (_reference(session, layout, session.window.ring - less) for less in (0, 1))
        output, fed = torch.cat(outputs), len(session.t) - STEPS
        for operator, part in (("chunk_attention", slice(0, fed)), ("decode_attention", slice(fed, None))):
            worst[operator] = max(worst[operator], (_error(output[part], expected[part]), session.where))
            if int(session.t[part][-1]) >= session.ring_first + session.window.ring - 1:
                error = _error(output[part], if_shorter[part])
                least_if_shorter[operator] = min(least_if_shorter[operator], error)
    for operator, (error, where) in worst.items():
        row = {"check": operator, "of": name, "window": max_window, "dtype": dtype}
        row |= {"error": error, "tolerance": TOLERANCES[dtype], "worst_at": where}
        row["ok"] = error < TOLERANCES[dtype]
        if dtype == "float32":
            row["error_if_ring_were_shorter"] = least_if_shorter[operator]
            row["ok"] &= least_if_shorter[operator] > 3 * TOLERANCES[dtype]
        yield row


def _feed(session: Session, lane: int, cache: torch.Tensor, positions: PositionEncoding) -> list[torch.Tensor]:
    """All but the last tokens in chunks that begin inside the sinks, cross the wrap, and end before the gap in t."""
    window, end = session.window, len(session.t) - STEPS
    sinks = min(window.sinks, end)
    bounds = [0, sinks] if session.ring_first > window.sinks else [0, sinks // 2]
    bounds += [*range(bounds[-1] + window.ring // 3 + 1, end, window.ring // 3 + 1), end]
    outputs = []
    for first, last in pairwise(bounds):
        if first == last:
            continue
        t = session.t[first:last]
        rotation = None
        if positions.slopes is None:
            rotation = step_rotation(positions, torch.stack((t, t.clamp(max=window.capacity - 1)), 1).to(cache.device))
        chunk = session.qkv[first:last]
        outputs.append(
            torch.ops.trtstream.chunk_attention(
                chunk,
                cache[lane],
                rotation,
                positions.slopes,
                int(t[0]),
                session.ring_first,
                window.sinks,
                window.max_sinks,
            )
        )
    return outputs


def _step(
    batch: list[Session], lanes: list[int], number: int, cache: torch.Tensor, positions: PositionEncoding
) -> Iterator[tuple[int, torch.Tensor]]:
    """The next tokens of the sessions in ``lanes``: each lane's output. Several have padding rows between and after."""
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
    outputs = torch.ops.trtstream.decode_attention(
        torch.stack(qkv), cache, torch.tensor(rows, device=cache.device), rotation, positions.slopes, MAX_SINKS
    )
    for row, output in zip(rows, outputs, strict=True):
        if row.lane >= 0:
            yield row.lane, output
        elif output.any():
            raise CheckFailed("decode_attention: the output of a padding row is not zero")


def _reference(session: Session, layout: Layout, ring: int) -> torch.Tensor:
    """What the session's outputs [T, heads * head_dim] must be, in float64, from the same rounded inputs."""
    device = session.qkv.device
    q, k, v = (
        session.qkv.double()
        .unflatten(1, (-1, layout.head_dim))
        .split((layout.heads, layout.kv_heads, layout.kv_heads), 1)
    )
    positions = layout.positions().to(device)
    with device:  # what the reference makes anew is made there
        outputs = streaming_attention(
            q, k, v, session.window.sinks, ring, positions.frequencies, positions.scale, session.t.to(device)
        )
    return outputs.flatten(1)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference; an enormous one where something is not a number."""
    return (found.double() - expected).abs().nan_to_num(nan=1e9).max().item()


def _engines(bench: Bench) -> Iterator[Row]:
    def cuda_engine(model: ModelConfig, build: BuildConfig, read: Reader) -> StreamingEngine:
        weights = weights_from(model, lambda name: read(name).to(bench.device))
        return make_engine(model, build, weights)

    return engine_checks(cuda_engine)


Maker = Callable[[ModelConfig, BuildConfig, Reader], StreamingEngine]
"""Makes an engine of some target from tensors that are read on the CPU, in the engine's dtype."""


def engine_checks(make: Maker) -> Iterator[Row]:
    """Whole engines of a target, in prefill and in decode, against the definition on the CPU."""
    for name, model in {"Llama": TINY_LLAMA, "Falcon": TINY_FALCON, "Falcon with ALiBi": TINY_FALCON_RW}.items():
        for dtype, tolerance in {"float32": 2e-4, "float16": 3e-2, "bfloat16": 0.2}.items():
            error = _engine_error(model, dtype, make)
            yield {
                "check": "engine against the CPU in float32",
                "of": f"tiny {name}, 3 sessions, to 4 C",
                "window": 32,
                "dtype": dtype,
                "error": error,
                "tolerance": tolerance,
                "ok": error < tolerance,
            }


def _engine_error(model: ModelConfig, dtype: str, make: Maker) -> float:
    """Largest difference of logits, in standard deviations of the logits."""
    build = BuildConfig(
        max_batch_size=4,
        max_num_tokens=24,
        max_attention_window=32,
        sink_token_length=4,
        max_sink_token_length=6,
        dtype=dtype,
    )
    cpu = torch.device("cpu")
    read = random_tensors(model, getattr(torch, dtype), cpu, std=0.2)
    weights = weights_from(model, lambda name: read(name).float())
    engines = make(model, build, read), make_engine(model, replace(build, dtype="float32"), weights)
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
