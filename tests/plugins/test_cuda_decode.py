"""The cuda target's decode kernel, in the Triton language's interpreter, against the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.plugins.streaming_layer import FAR, LAYOUTS, Layout, Session
from trtstream.plugins import cuda_decode
from trtstream.plugins.cuda_grid import num_splits
from trtstream.plugins.cuda_ops import decode_attention
from trtstream.plugins.decode_plan import plan_step
from trtstream.plugins.kv_cache import stored_vectors
from trtstream.plugins.window import Window

PADDING = torch.tensor([[-1, 0, 0, 0, 0, 0]])
RING = 20
QUANTIZED = (torch.int8, torch.float8_e4m3fn)
# The interpreter warns of the NaNs in padding rows, which are quantized as others are, and not stored.
IGNORE_PADDING = pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value encountered in cast")


def sessions_of_all_ages(layout: Layout, max_sinks: int, **dtypes: torch.dtype) -> list[Session]:
    """With S = S_max: young, below C, full, just wrapped, wrapped, far past, rebuilt; and some with fewer sinks."""
    window = Window(max_sinks, max_sinks, RING)
    full = window.capacity
    ages = [0, max(max_sinks - 1, 0), max_sinks, full - 2, full - 1, full, full + 27, FAR]
    sessions = [Session(layout, window, t, **dtypes) for t in ages]
    sessions += [Session(layout, window, t, ring_first=full + 9, **dtypes) for t in (full + 9, full + 9 + 15)]
    for sinks in {0, 1, 4} & set(range(max_sinks)):
        fewer = Window(sinks, max_sinks, RING)
        sessions += [Session(layout, fewer, t, **dtypes) for t in (fewer.capacity, FAR + sinks)]
    return sessions


def step(
    sessions: list[Session], decode: Callable[..., torch.Tensor], **tiles: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of all sessions in one batch with padding rows: outputs, and the caches after it, [sessions, ...]."""
    layout, max_sinks = sessions[0].layout, sessions[0].window.max_sinks
    before = torch.stack([session.cache(session.first) for session in sessions])
    # As in a runtime: one layer of a cache of several, and lanes in another order than rows.
    cache = torch.zeros((len(sessions), 3, *before.shape[1:]), dtype=before.dtype)
    cached = stored_vectors(cache)
    (cached.numbers if cached.scales is None else cached.scales).fill_(torch.nan)
    lanes = list(reversed(range(len(sessions))))
    cache[lanes, 1] = before
    plan = plan_step(layout.positions, [session.step(lane) for session, lane in zip(sessions, lanes, strict=True)])
    rotation = None if plan.rotation is None else torch.cat((plan.rotation, plan.rotation[:2]))
    qkv = torch.cat([session.new for session in sessions] + [torch.full_like(sessions[0].new, torch.nan)] * 2)
    rows, arrivals = torch.cat((plan.rows, PADDING, PADDING)), torch.zeros(len(qkv) * layout.heads, dtype=torch.int32)
    out = decode(qkv, cache[:, 1], rows, rotation, plan.slopes, arrivals, max_sinks, **tiles)
    assert not arrivals.any(), "not all counts are zero again"
    assert (out[-2:] == 0).all()
    assert cached[:, [0, 2]].float().isnan().all()
    return out[:-2], cache[lanes, 1]


def worst_error(sessions: list[Session], decode: Callable[..., torch.Tensor], **tiles: int) -> float:
    """The largest difference from the definition in outputs or caches; NaN where only one of them has a NaN."""
    out, caches = step(sessions, decode, **tiles)
    wrong = [out - torch.cat([session.expected() for session in sessions])]
    for session, stored in zip(sessions, caches, strict=True):
        cache, after = (stored_vectors(x).float() for x in (stored, session.cache(session.first + 1)))
        written = ~after.isnan()
        wrong.append(torch.where(written, cache - after, torch.where(cache.isnan(), 0.0, torch.nan)))
    return torch.stack([x.abs().max() for x in wrong]).max().item()


@pytest.mark.quick("gqa-24-1", "alibi-24-1")
@pytest.mark.parametrize(
    ("layout", "max_sinks", "splits"),
    [
        ("mha", 0, 1),
        ("mha", 1, 2),
        ("mha", 4, 4),
        ("mha", 24, 2),
        ("gqa", 4, 2),
        ("gqa", 24, 1),
        ("mqa", 4, 1),
        ("odd", 4, 2),
        ("wide", 4, 1),
        ("alibi", 0, 1),
        ("alibi", 24, 1),
    ],
)
def test_a_step_equals_the_reference(layout: str, max_sinks: int, splits: int, interpreter: None) -> None:
    sessions = sessions_of_all_ages(LAYOUTS[layout], max_sinks)
    assert worst_error(sessions, cuda_decode.launch_decode, splits=splits, BLOCK=16) < 1e-5


@pytest.mark.quick("gqa-kv_dtype0")
@IGNORE_PADDING
@pytest.mark.parametrize("kv_dtype", QUANTIZED)
@pytest.mark.parametrize("layout", ["gqa", "odd", "alibi"])
def test_a_step_with_a_quantized_cache(layout: str, kv_dtype: torch.dtype, interpreter: None) -> None:
    sessions = sessions_of_all_ages(LAYOUTS[layout], 4, kv_dtype=kv_dtype)
    assert worst_error(sessions, cuda_decode.launch_decode, splits=2, BLOCK=16) < 1e-5


@pytest.mark.quick("dtype1-None")
@IGNORE_PADDING
@pytest.mark.parametrize("kv_dtype", [None, *QUANTIZED])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_step_in_16_bits(dtype: torch.dtype, kv_dtype: torch.dtype | None, interpreter: None) -> None:
    sessions = sessions_of_all_ages(LAYOUTS["gqa"], 4, dtype=dtype, kv_dtype=kv_dtype)
    assert worst_error(sessions, cuda_decode.launch_decode, splits=2, BLOCK=16) < 4 * torch.finfo(dtype).eps


@IGNORE_PADDING
@pytest.mark.parametrize("kv_dtype", [None, *QUANTIZED])
def test_the_op_runs_the_kernel_under_the_interpreter_and_else_its_definition(
    kv_dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch, interpreter: None
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    sessions = sessions_of_all_ages(LAYOUTS["mha"], 4, kv_dtype=kv_dtype)
    kernel_calls = []
    launch = cuda_decode.launch_decode
    monkeypatch.setattr(cuda_decode, "launch_decode", lambda *args: kernel_calls.append(1) or launch(*args))
    assert worst_error(sessions, decode_attention) < 1e-5
    assert not kernel_calls
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert worst_error(sessions, decode_attention) < 1e-5
    assert kernel_calls


MUTATIONS = {
    "the token is written one slot off": (
        "write = tl.load(row + 1).to(tl.int32)",
        "write = tl.maximum(tl.load(row + 1).to(tl.int32) - 1, 0)",
    ),
    "the new token is seen twice": ("(slots != write)", "(slots != write + 1)"),
    "sinks at the ring's rotation": ("if begin < num_sinks:", "if begin < 0:"),
    "one sink too few": ("is_sink = slots < num_sinks", "is_sink = slots < num_sinks - 1"),
    "one ring token too few": ("(age < ring_count)", "(age < ring_count - 1)"),
    "one ring token too many": ("(age < ring_count)", "(age <= ring_count)"),
    "the ring one slot off": ("age = newest - (slots - MAX_SINKS)", "age = newest - (slots - MAX_SINKS) - 1"),
    "the last split's tiles left out": ("used, splits * BLOCK)", "used - BLOCK, splits * BLOCK)"),
    "tiles taken by every split": ("used, splits * BLOCK)", "used, BLOCK)"),
    "splits merged without their peaks": (
        "weight = tl.exp2(peak - new_peak), tl.exp2(split_peak - new_peak)",
        "weight = tl.exp2(peak * 0), tl.exp2(split_peak * 0)",
    ),
    "the first split left out": ("tl.range(0, splits,", "tl.range(1, splits,"),
}


@pytest.mark.quick("one sink*", "splits merged*", "the first split*")
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_the_comparison_sees_a_mutated_kernel(mutation: tuple[str, str], mutant: Callable) -> None:
    broken = mutant(cuda_decode, *mutation)
    sessions = sessions_of_all_ages(LAYOUTS["mha"], 4)[:10]
    assert not worst_error(sessions, broken.launch_decode, splits=2, BLOCK=16) < 1e-3


def test_the_splits_may_end_in_any_order(mutant: Callable) -> None:
    reverse = mutant(cuda_decode, "split, splits = tl.program_id(2),", "split, splits = 3 - tl.program_id(2),")
    sessions = sessions_of_all_ages(LAYOUTS["gqa"], 4)
    assert worst_error(sessions, reverse.launch_decode, splits=4, BLOCK=16) < 1e-5


def test_a_count_that_stays_is_seen(mutant: Callable) -> None:
    broken = mutant(cuda_decode, "tl.store(arrival, 0)", "tl.store(arrival, 1)")
    with pytest.raises(AssertionError, match="counts are zero"):
        worst_error(sessions_of_all_ages(LAYOUTS["mha"], 4), broken.launch_decode, splits=2, BLOCK=16)


QUANTIZED_MUTATIONS = {
    "the scale of keys used for values": (
        "tl.load(value_scales + slots, mask=visible",
        "tl.load(key_scales + slots, mask=visible",
    ),
    "the scale of the next slot's key": (
        "tl.load(key_scales + slots, mask=visible",
        "tl.load(key_scales + slots + 1, mask=visible",
    ),
    "another head's scales": ("scale_stride + kv_head * WIDTH", "scale_stride"),
    "keys not dequantized": ("scores = scores * tl.load(key_scales", "scores += 0 * tl.load(key_scales"),
    "values not dequantized": ("* tile_scales[:, None]).to", "+ 0 * tile_scales[:, None]).to"),
    "the new key not dequantized": ("axis=1) * scale * key_scale", "axis=1) * scale"),
    "half a key's scale": (
        "tl.maximum(scale_of(key_first, stored), scale_of(key_second, stored))",
        "scale_of(key_first, stored)",
    ),
}


@pytest.mark.quick("keys not*")
@IGNORE_PADDING
@pytest.mark.parametrize("mutation", QUANTIZED_MUTATIONS.values(), ids=QUANTIZED_MUTATIONS)
def test_the_comparison_sees_a_quantized_cache_read_wrongly(mutation: tuple[str, str], mutant: Callable) -> None:
    broken = mutant(cuda_decode, *mutation)
    sessions = sessions_of_all_ages(LAYOUTS["mha"], 4, kv_dtype=torch.int8)[:10]
    assert not worst_error(sessions, broken.launch_decode, splits=2, BLOCK=16) < 1e-3


def test_the_comparison_sees_a_sinks_alibi_distance_off_by_one(mutant: Callable) -> None:
    broken = mutant(cuda_decode, "cache_position - slots", "cache_position - slots + 1")
    sessions = sessions_of_all_ages(LAYOUTS["alibi"], 4)[-3:]
    assert not worst_error(sessions, broken.launch_decode, splits=1, BLOCK=16) < 1e-3


def test_the_cache_is_split_to_fill_the_gpu_and_no_further() -> None:
    assert num_splits(programs=32, tiles=16, most=264) == 8
    assert num_splits(programs=3, tiles=16, most=264) == 16
    assert num_splits(programs=3, tiles=1, most=264) == 1
    assert num_splits(programs=256, tiles=64, most=264) == 1
    assert num_splits(programs=2048, tiles=64, most=264) == 1
