"""The cpu engine's bookkeeping: rollback, export and import, refusals."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.engines import build_variant, random_tokens
from trtstream.engine_dir import KERNEL, WEIGHTS
from trtstream.errors import TrtstreamError
from trtstream.plugins.cpu_kernel import open_library
from trtstream.runtime.cpu import CpuBackend
from trtstream.runtime.cpu_weights import read_cpu_weights
from trtstream.runtime.loading import load_engine
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.samples.gpl import GPL

RING = 20
TOLERANCE = 1e-4  # of the logits' standard deviation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    _, engine = build_variant(
        tmp_path_factory.mktemp("engine"), "llama-gqa", max_batch_size=6, max_attention_window=28, max_num_tokens=16,
        max_sink_token_length=8,
    )  # fmt: skip
    return engine


@pytest.fixture
def engine(folder: Path) -> StreamingEngine:
    return load_engine(folder)


def run_turn(engine: StreamingEngine, before: int, turn: int) -> tuple[SessionState, list[int]]:
    """Begin a turn in lane 0 after ``before`` tokens, and feed it ``turn`` tokens at once and as many one by one.

    Returns the session and the tokens that it saw, as they were before the turn.
    """
    if before:
        engine.prefill(0, random_tokens(before))
    was, visible = engine.export_state(0), engine.visible_tokens(0)
    engine.begin_turn(0)
    engine.prefill(0, random_tokens(turn, seed=1))
    for token in random_tokens(turn, seed=2):
        engine.decode([0], [token])
    return was, visible


def assert_as_it_was(
    engine: StreamingEngine, lane: int, was: SessionState, visible: list[int], before: int, turn: int
) -> None:
    """The session in ``lane`` is what it was after ``before`` tokens, and goes on as that does in lane 1."""
    now = engine.export_state(lane)
    assert (now.position, now.token_ids, engine.visible_tokens(lane)) == (was.position, was.token_ids, visible)
    if before > 4 + RING:  # every slot was in use, so every slot must be as it was
        assert now.kv_cache is not None
        assert was.kv_cache is not None
        assert torch.equal(now.kv_cache[..., :4, :], was.kv_cache[..., :4, :])
        assert torch.equal(now.kv_cache[..., 8:, :], was.kv_cache[..., 8:, :])
    engine.import_state(1, was)
    engine.prefill(lane, random_tokens(turn, seed=3))
    engine.prefill(1, random_tokens(turn, seed=3))
    assert torch.equal(*(engine.decode([each], [5]) for each in (lane, 1)))


@pytest.mark.parametrize("before", [0, 2, 4, 15, 24, 90])
@pytest.mark.parametrize("turn", [1, 3, 19, 20, 21, 33, 50])
def test_rollback_leaves_no_trace(engine: StreamingEngine, before: int, turn: int) -> None:
    was, visible = run_turn(engine, before, turn)
    engine.rollback_turn(0)
    assert_as_it_was(engine, 0, was, visible, before, turn)


@pytest.mark.parametrize("before", [0, 4, 15, 90])
@pytest.mark.parametrize("turn", [1, 20, 33])
def test_a_copy_from_before_the_last_turn(engine: StreamingEngine, before: int, turn: int) -> None:
    was, visible = run_turn(engine, before, turn)
    engine.commit_turn(0)
    assert engine.position_before_last_turn(0) == before
    after = engine.export_state(0)
    for lane in (2, 3):
        engine.copy_session_before_last_turn(0, lane)
    engine.prefill(3, [9])
    assert (engine.export_state(0).token_ids, engine.position(0)) == (after.token_ids, after.position)
    assert torch.equal(engine.export_state(0).kv_cache, after.kv_cache)
    engine.prefill(0, [7])
    assert engine.position_before_last_turn(0) is None
    assert_as_it_was(engine, 2, was, visible, before, turn)


@pytest.mark.parametrize("has_library", [True, False])
@pytest.mark.parametrize("lengths", [[5], [30, 1, 47]])
@pytest.mark.parametrize("decoding", [[], [2], [5, 1]])
def test_a_mixed_step_equals_its_parts(engine, folder, has_library, lengths, decoding) -> None:
    model, build = engine.model, replace(engine.build, max_num_tokens=50)  # the longest chunk
    weights = read_cpu_weights(folder / WEIGHTS, model, build.dtype)
    library = open_library(folder / KERNEL, model, build) if has_library else None
    mixing = StreamingEngine(model, build, CpuBackend(model, build, weights, library))
    prefilling = [lane for lane in range(6) if lane not in decoding][: len(lengths)]
    for each in (engine, mixing):
        for lane in range(6):
            each.reset(lane)
            each.prefill(lane, random_tokens(1 + 17 * lane, seed=lane))
    for step in range(3):
        tokens = random_tokens(len(decoding), seed=step)
        chunks = {lane: random_tokens(n, seed=n + step) for lane, n in zip(prefilling, lengths, strict=True)}
        parts = [engine.decode(decoding, tokens)] if decoding else []
        parts += [engine.prefill(lane, chunk)[None] for lane, chunk in chunks.items()]
        expected, found = torch.cat(parts), mixing.decode_and_prefill(decoding, tokens, chunks)
        assert (found - expected).abs().max() < 1e-4 * expected.std()
    for lane in range(6):
        one, other = engine.export_state(lane), mixing.export_state(lane)
        assert (one.position, one.token_ids) == (other.position, other.token_ids)


def test_a_mixed_step_takes_each_lane_once(engine) -> None:
    with pytest.raises(TrtstreamError, match="distinct lanes"):
        engine.decode_and_prefill([0, 1], [5, 5], {1: [3, 4]})
    with pytest.raises(TrtstreamError, match="token id 9999999 is outside the vocabulary"):
        engine.decode_and_prefill([0], [5], {1: [9999999]})


def test_a_turn_without_a_log_cannot_be_rolled_back(engine: StreamingEngine) -> None:
    engine.begin_turn(0)
    engine.prefill(0, [1, 2, 3])
    engine.commit_turn(0)
    with pytest.raises(TrtstreamError, match="no turn to roll back"):
        engine.rollback_turn(0)


def test_an_exported_state_is_a_copy(engine: StreamingEngine) -> None:
    engine.prefill(0, random_tokens(50))
    state = engine.export_state(0)
    kept = copy.deepcopy(state)
    engine.prefill(0, random_tokens(10))
    assert torch.equal(state.kv_cache, kept.kv_cache)
    assert state.token_ids == kept.token_ids


def test_a_cache_of_another_engine_is_refused(engine: StreamingEngine) -> None:
    engine.reset(0)
    engine.prefill(0, random_tokens(10))
    state = engine.export_state(0)
    assert state.kv_cache is not None
    for cache in (state.kv_cache[..., 1:, :], state.kv_cache.bfloat16()):
        with pytest.raises(TrtstreamError, match="import it without kv_cache"):
            engine.import_state(0, replace(state, kv_cache=cache))
    assert engine.position(0) == 10


def test_a_backend_without_a_library_decodes_too(engine: StreamingEngine, folder: Path) -> None:
    weights = read_cpu_weights(folder / WEIGHTS, engine.model, engine.build.dtype)
    backend = CpuBackend(engine.model, engine.build, weights, library=None)
    other = StreamingEngine(engine.model, engine.build, backend)
    for lane, length in ((0, 3), (1, 70)):
        for each in (engine, other):
            each.reset(lane)
            each.prefill(lane, random_tokens(length))
    for token in random_tokens(10):
        found, expected = other.decode([1, 0], [token, 5]), engine.decode([1, 0], [token, 5])
        assert (found - expected).abs().max() < TOLERANCE * expected.std()


def test_visible_tokens_are_sinks_and_ring(engine: StreamingEngine) -> None:
    fed = random_tokens(100)
    engine.reset(0, 2)
    engine.prefill(0, fed[:10])
    assert engine.visible_tokens(0) == fed[:10]
    for token in fed[10:]:
        engine.decode([0], [token])
    assert engine.visible_tokens(0) == fed[:2] + fed[-RING:]


def test_a_batch_equals_each_session_alone(engine: StreamingEngine) -> None:
    fed = [random_tokens(60, seed=lane) for lane in range(3)]
    alone = []
    for lane, first in zip(range(3), (1, 25, 50), strict=True):
        engine.reset(0)
        engine.prefill(0, fed[lane][:first])
        alone.append(torch.cat([engine.decode([0], [t]) for t in fed[lane][first : first + 10]]))
    for lane, first in zip(range(3), (1, 25, 50), strict=True):
        engine.reset(lane)
        engine.prefill(lane, fed[lane][:first])
    together = [engine.decode([2, 0, 1], [fed[2][50 + i], fed[0][1 + i], fed[1][25 + i]])[[1, 2, 0]] for i in range(10)]
    assert (torch.stack(together, dim=1) - torch.stack(alone)).abs().max() < 1e-4


def test_without_a_library_decode_steps_are_chunks(engine: StreamingEngine, folder: Path) -> None:
    weights = read_cpu_weights(folder / WEIGHTS, engine.model, engine.build.dtype)
    slower = StreamingEngine(engine.model, engine.build, CpuBackend(engine.model, engine.build, weights))
    for both in (engine, slower):
        both.prefill(0, random_tokens(5))
        both.prefill(1, random_tokens(40))
    for step in range(50):
        tokens = random_tokens(2, seed=step)
        expected = engine.decode([0, 1], tokens)
        assert (slower.decode([0, 1], tokens) - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize("bad", [[128], [-1], [0, 500], []])
def test_bad_tokens_change_nothing(engine: StreamingEngine, bad: list[int]) -> None:
    for feed in (lambda: engine.prefill(0, bad), lambda: engine.score(0, bad), lambda: engine.decode([0], bad)):
        with pytest.raises(TrtstreamError):
            feed()
    assert engine.position(0) == 0


def test_too_many_sinks_are_refused(engine: StreamingEngine) -> None:
    with pytest.raises(TrtstreamError, match=r"9 sink tokens; this engine allows 0 to 8"):
        engine.reset(0, 9)


def test_smollm2_perplexity_of_the_papers_own_code(smollm2_engine: Path) -> None:
    """700 tokens, S = 4, W = 128, float32: mit-han-lab/streaming-llm gives 21.1092 on the same checkpoint and text."""
    engine = load_engine(smollm2_engine)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_engine / "tokenizer")
    ids = tokenizer(GPL.read_text(), add_special_tokens=False)["input_ids"][:700]
    scores = engine.score(0, ids)
    assert math.exp(-scores[1:].mean()) == pytest.approx(21.1092, abs=0.002)
    engine.reset(0, 3)  # the figure moves when a sink is missing
    fewer = engine.score(0, ids[:300])
    assert math.exp(-fewer[1:].mean()) != pytest.approx(math.exp(-scores[1:300].mean()), abs=0.002)
