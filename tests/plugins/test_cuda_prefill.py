"""The cuda target's prefill kernels, in the Triton language's interpreter, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from tests.plugins.streaming_layer import FAR, LAYOUTS, Session
from trtstream.plugins import cuda_prefill
from trtstream.plugins.cuda_ops import chunk_attention
from trtstream.plugins.kv_cache import stored_vectors
from trtstream.plugins.window import Window

RING = 20
QUANTIZED = (torch.int8, torch.float8_e4m3fn)
TILES = {"BLOCK_T": 16, "BLOCK": 16}


def worst_error(session: Session, prefill: Callable[..., torch.Tensor], padding: int = 0, **tiles: int) -> float:
    """The largest difference from the definition in output or cache; NaN where only one of them has a NaN.

    The session is in lane 1 of 3, and its chunk is followed by ``padding`` infinite rows.
    """
    length = len(session.new)
    before, after = session.cache(session.first), session.cache(session.first + length)
    cache, expected = (torch.stack((before, x, before)) for x in (before, after))
    rotation = session.rotation()
    out = prefill(
        F.pad(session.new, (0, 0, 0, padding), value=torch.inf),
        cache,
        torch.tensor(session.step(1).chunk(length)),
        None if rotation is None else F.pad(rotation, (0, 0, 0, 0, 0, padding), value=torch.inf),
        session.layout.positions.slopes,
        session.window.max_sinks,
        **tiles,
    )[:length]
    cache, expected = (stored_vectors(x).float() for x in (cache, expected))
    wrong = torch.where(expected.isnan(), torch.where(cache.isnan(), 0.0, torch.nan), cache - expected)
    return torch.stack([(out - session.expected()).abs().max(), wrong.abs().max()]).max().item()


@pytest.mark.quick("gqa", "alibi")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_chunk_equals_the_reference(layout: str, interpreter: None) -> None:
    window = Window(4, 5, RING)
    for first, new in ((0, 31), (25, 7), (FAR, 5)):
        session = Session(LAYOUTS[layout], window, first, new)
        assert worst_error(session, cuda_prefill.launch_prefill, **TILES) < 1e-5, (first, new)


def test_padding_is_neither_seen_nor_written() -> None:
    """By the kernels or their definition. Some chunks end inside a tile or the sinks, and one is empty."""
    for layout, (first, new), padding in product(("gqa", "alibi"), ((0, 3), (0, 31), (25, 16), (FAR, 5)), (1, 29)):
        session = Session(LAYOUTS[layout], Window(4, 5, RING), first, new)
        for prefill, tiles in ((cuda_prefill.launch_prefill, TILES), (chunk_attention, {})):
            assert worst_error(session, prefill, padding, **tiles) < 1e-5, (layout, first, new, padding)
    session = Session(LAYOUTS["gqa"], Window(4, 5, RING), 25, 7)
    was = session.cache(32).nan_to_num()
    cache = was.clone()[None]
    cuda_prefill.launch_prefill(session.new, cache, torch.tensor(session.step(0).chunk(0)), session.rotation(), None, 5)
    assert torch.equal(cache[0], was)


@pytest.mark.quick("0-1", "4-43")
@pytest.mark.parametrize(
    ("sinks", "new"),
    [(0, 1), (0, RING), (1, 5), (1, 2 * RING + 3), (4, 1), (4, 7), (4, RING), (4, 2 * RING + 3), (24, 5), (24, RING)],
)
def test_chunks_of_every_length_from_every_place(sinks: int, new: int, interpreter: None) -> None:
    """From nothing, inside the sinks, exactly full, far past, and in a rebuilt session."""
    window = Window(sinks, max(sinks, 4), RING)
    full = window.capacity
    for first in sorted({0, sinks // 2, full, FAR}):
        session = Session(LAYOUTS["mha"], window, first, new)
        assert worst_error(session, cuda_prefill.launch_prefill, **TILES) < 1e-5, first
    for since in (0, 8):
        session = Session(LAYOUTS["mha"], window, full + 9 + since, new, ring_first=full + 9)
        assert worst_error(session, cuda_prefill.launch_prefill, **TILES) < 1e-5, since


@pytest.mark.quick("gqa-kv_dtype0")
@pytest.mark.parametrize("kv_dtype", QUANTIZED)
@pytest.mark.parametrize("layout", ["gqa", "odd", "alibi"])
def test_a_chunk_with_a_quantized_cache(layout: str, kv_dtype: torch.dtype, interpreter: None) -> None:
    for first, new in ((0, 31), (25, 7), (FAR, 2 * RING + 3)):
        session = Session(LAYOUTS[layout], Window(4, 5, RING), first, new, kv_dtype=kv_dtype)
        assert worst_error(session, cuda_prefill.launch_prefill, **TILES) < 1e-5, (first, new)


@pytest.mark.quick("dtype1-None")
@pytest.mark.parametrize("kv_dtype", [None, *QUANTIZED])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_chunk_in_16_bits(dtype: torch.dtype, kv_dtype: torch.dtype | None, interpreter: None) -> None:
    for first in (0, 30):
        session = Session(LAYOUTS["gqa"], Window(4, 4, RING), first, 31, dtype=dtype, kv_dtype=kv_dtype)
        assert worst_error(session, cuda_prefill.launch_prefill, **TILES) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("kv_dtype", [None, *QUANTIZED])
def test_the_op_runs_the_kernel_under_the_interpreter_and_else_its_definition(
    kv_dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch, interpreter: None
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    session = Session(LAYOUTS["gqa"], Window(4, 5, RING), 21, 7, kv_dtype=kv_dtype)
    kernel_calls = []
    launch = cuda_prefill.launch_prefill
    monkeypatch.setattr(cuda_prefill, "launch_prefill", lambda *args: kernel_calls.append(1) or launch(*args))
    assert worst_error(session, chunk_attention) < 1e-5
    assert not kernel_calls
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert worst_error(session, chunk_attention) < 1e-5
    assert kernel_calls


MUTATIONS = {
    "sinks at the ring's rotation": ("sink_first, sink_second, keys + key", "first, second, keys + key"),
    "one sink too few": ("num_sinks = tl.minimum(sinks,", "num_sinks = tl.minimum(sinks - 1,"),
    "a sink does not see itself": ("key <= position,", "key < position,"),
    "one ring token too many": ("query - key < RING", "query - key <= RING"),
    "one ring token too few": ("query - key < RING", "query - key < RING - 1"),
    "a tile of the old ring left out": ("range(tl.maximum(-old_count,", "range(BLOCK + tl.maximum(-old_count,"),
    "the old ring one slot off": ("index = newest + 1 + key", "index = newest + key"),
    "a query does not see itself": ("(key <= query)", "(key < query)"),
    "a query sees the next token": ("(key <= query)", "(key <= query + 1)"),
    "ring tokens of the chunk before its ring": ("tl.maximum(ring_begin, begin", "tl.maximum(0, begin"),
    "written one slot off": ("(number - sinks) % RING", "(number - sinks + 1) % RING"),
    "written before the attention": ("        write(sinks=True)", "        write(sinks=True), write(sinks=False)"),
    "written into the first lane": ("target = cache + lane * session_stride", "target = cache"),
    "the first lane's keys": ("keys = cache + lane * session_stride", "keys = cache"),
    "sinks left out": ("begin, end = 0, new_sinks", "begin, end = 0, 0"),
}


@pytest.mark.quick("one sink*", "written before*")
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_the_comparison_sees_a_mutated_kernel(mutation: tuple[str, str], mutant: Callable) -> None:
    broken = mutant(cuda_prefill, *mutation)
    window = Window(4, 5, RING)
    sessions = [Session(LAYOUTS["mha"], window, first, 7) for first in (0, 60)]
    assert any(not worst_error(session, broken.launch_prefill, **TILES) < 1e-3 for session in sessions)


@pytest.mark.quick("padding is written")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("begin, end = tl.maximum(new_sinks, length - RING), length", "begin, end = new_sinks, length + 2"),
        ("tl.minimum(tl.maximum(sinks - first, 0), length)", "tl.maximum(sinks - first, 0)"),
        ("end = tl.minimum(begin + BLOCK_T, length)", "end = begin + BLOCK_T"),
    ],
    ids=["padding is written", "sinks beyond the chunk", "keys beyond the chunk"],
)
def test_the_comparison_sees_mutated_bounds_of_a_padded_chunk(right: str, wrong: str, mutant: Callable) -> None:
    broken = mutant(cuda_prefill, right, wrong)
    sessions = [Session(LAYOUTS["mha"], Window(4, 5, RING), first, new) for first, new in ((0, 2), (30, 7))]
    assert any(not worst_error(session, broken.launch_prefill, 9, **TILES) < 1e-3 for session in sessions)


QUANTIZED_MUTATIONS = {
    "the scale of keys used for values": (
        "value_scales = moved(key_scales, KV_HEADS * WIDTH)",
        "value_scales = key_scales",
    ),
    "the same in the chunk": ("value_scales = moved(key_scales, KV_HEADS)", "value_scales = key_scales"),
    "another head's scales": ("lane * scale_stride + kv_head * WIDTH)", "lane * scale_stride)"),
    "the ring's scales one slot off": ("moved(key_scales, slot)", "moved(key_scales, slot - 1)"),
    "keys not dequantized": ("scores = scores * tl.load(key_scales", "scores += 0 * tl.load(key_scales"),
    "values not dequantized": ("* tile_scales[:, None]).to", "+ 0 * tile_scales[:, None]).to"),
    "the scales of values not written": ("tl.load(source + KV_HEADS, mask", "tl.load(source, mask"),
    "a scale for two tokens": (
        "value_scale = scale_of(values, stored)[:, None]",
        "value_scale = tl.max(scale_of(values, stored)) + tl.zeros([BLOCK, 1], tl.float32)",
    ),
}


@pytest.mark.quick("keys not*")
@pytest.mark.parametrize("mutation", QUANTIZED_MUTATIONS.values(), ids=QUANTIZED_MUTATIONS)
def test_the_comparison_sees_a_quantized_cache_read_wrongly(mutation: tuple[str, str], mutant: Callable) -> None:
    broken = mutant(cuda_prefill, *mutation)
    sessions = [Session(LAYOUTS["mha"], Window(4, 5, RING), first, 7, kv_dtype=torch.int8) for first in (0, 60)]
    assert any(not worst_error(session, broken.launch_prefill, **TILES) < 1e-3 for session in sessions)


def test_the_comparison_sees_a_sinks_alibi_distance_off_by_one(mutant: Callable) -> None:
    broken = mutant(cuda_prefill, "position - key, slope", "position - key + 1, slope")
    session = Session(LAYOUTS["alibi"], Window(4, 5, RING), 60, 7)
    assert not worst_error(session, broken.launch_prefill, **TILES) < 1e-3
