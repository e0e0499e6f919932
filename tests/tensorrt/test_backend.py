"""The runtime of the TensorRT targets over the very networks that are built, which the interpreter runs on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.checkpoints import write_checkpoint
from tests.engines import MAX_SINKS, RING, SIZES, random_tokens, reference_logits
from tests.tensorrt.interpreted_engine import interpreted_engine
from trtstream.build.checkpoint import Checkpoint, open_checkpoint
from trtstream.plugins import tensorrt_io
from trtstream.plugins.decode_plan import Step
from trtstream.plugins.window import Window
from trtstream.runtime import tensorrt as backend_module
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.settings import BuildConfig

BUILD = BuildConfig(**SIZES)
TOLERANCE = 1e-4  # of the logits' standard deviation


@pytest.fixture(scope="module", params=["llama-gqa", "falcon-7b", "falcon-rw"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Grouped queries and RoPE; one key-value head; ALiBi."""
    return open_checkpoint(write_checkpoint(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint) -> StreamingEngine:
    return interpreted_engine(checkpoint, BUILD)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_checkpoint(tmp_path_factory.mktemp("llama"), "llama-gqa"))


@pytest.fixture(scope="module")
def shared(llama: Checkpoint) -> StreamingEngine:
    """An engine whose lanes hold the sessions of earlier tests."""
    return interpreted_engine(llama, BUILD)


def steps(engine: StreamingEngine, lane: int, fed: list[int]) -> torch.Tensor:
    return torch.cat([engine.decode([lane], [token]) for token in fed])


def scores_of(logits: torch.Tensor, fed: list[int]) -> torch.Tensor:
    """Log-probabilities of all tokens but the first, from the logits of all but the last."""
    return logits[:-1].log_softmax(dim=-1).gather(1, torch.tensor(fed[1:])[:, None])[:, 0]


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < TOLERANCE * expected.std()


def test_sessions_side_by_side_to_four_times_capacity(engine: StreamingEngine, checkpoint: Checkpoint) -> None:
    sinks = [0, 1, 4, MAX_SINKS]
    fed = random_tokens(4 * (MAX_SINKS + RING) + 3)
    for lane in range(4):
        engine.reset(lane, sinks[lane])
    found = torch.stack([engine.decode([3, 1, 0, 2], [token] * 4) for token in fed], dim=1)
    for row, lane in enumerate([3, 1, 0, 2]):
        assert_equal(found[row], reference_logits(checkpoint, fed, sinks[lane], RING))


@pytest.mark.quick("*-8")
@pytest.mark.parametrize("sinks", [0, 3, MAX_SINKS])
def test_prefill_in_any_cuts_equals_single_steps(engine: StreamingEngine, checkpoint: Checkpoint, sinks: int) -> None:
    fed = random_tokens(4 * (sinks + RING) + 3)
    expected = reference_logits(checkpoint, fed, sinks, RING)
    for size in (5, 16, 50):  # less than a call, exactly one, several and a rest
        engine.reset(1, sinks)
        scores = torch.cat([engine.score(1, fed[i : i + size]) for i in range(0, len(fed), size)])
        assert (scores[1:] - scores_of(expected, fed)).abs().max() < TOLERANCE * expected.std()
    engine.reset(2, sinks)
    assert_equal(engine.prefill(2, fed[:-3]), expected[-4])
    assert_equal(steps(engine, 2, fed[-3:]), expected[-3:])


@pytest.mark.quick("*-4")
@pytest.mark.parametrize("sinks", [0, 4])
def test_a_session_at_position_four_million(engine: StreamingEngine, checkpoint: Checkpoint, sinks: int) -> None:
    start, fed = 4_000_000, random_tokens(sinks + 60)
    t = torch.cat((torch.arange(sinks), torch.arange(start, start + 60)))
    expected = reference_logits(checkpoint, fed, sinks, RING, dtype=torch.float64, t=t)
    engine.import_state(3, SessionState(sinks, start + 30, fed[: sinks + 30]))
    assert_equal(steps(engine, 3, fed[sinks + 30 :]), expected[sinks + 30 :])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("queries", lambda pairs: [(p + 1, later) for p, later in pairs]),
        ("queries", lambda pairs: [(p, later + 1) for p, later in pairs]),
        ("row", lambda row: (row[0] - 1, *row[1:])),
        ("row", lambda row: (row[0], row[1] - 1, row[2])),
        ("row", lambda row: (*row[:2], row[2] - 1)),
    ],
    ids=["position", "later tokens", "sinks", "newest", "stored"],
)
def test_a_backend_off_by_one_is_seen(
    llama: Checkpoint, monkeypatch: pytest.MonkeyPatch, name: str, change: Callable
) -> None:
    """The other tests' differences are large where the backend passes the network a number that is off by one."""
    right = getattr(tensorrt_io, name)
    monkeypatch.setattr(backend_module, name, lambda *arguments: change(right(*arguments)))
    fed = random_tokens(60)
    expected = reference_logits(llama, fed, 4, RING)
    engine = interpreted_engine(llama, BUILD)
    engine.prefill(0, fed[:30])
    scored, decoded = engine.score(0, fed[30:45]), steps(engine, 0, fed[45:])
    for error in (scored - scores_of(expected, fed)[29:44], decoded - expected[45:]):
        assert error.abs().max() > 100 * TOLERANCE * expected.std()


@pytest.mark.parametrize("num_logits", [0, 1, 3, 9, 16])
def test_logits_of_a_chunk_in_pieces(shared: StreamingEngine, llama: Checkpoint, num_logits: int) -> None:
    """Backends return exactly the requested logits, however the ring's wrap divides the chunk."""
    window = Window(4, MAX_SINKS, RING, shared.backend.spare_slots)
    first = Step(0, window, t=4 + window.ring_slots - 7, ring_first=4)
    assert tensorrt_io.chunk_lengths(window, first.t, 16) == [7, 9]
    fed = random_tokens(first.t + 16)
    expected = reference_logits(llama, fed, 4, RING)
    shared.reset(0, 4)
    shared.prefill(0, fed[: first.t])
    found = shared.backend.prefill(first, fed[first.t :], num_logits)
    assert found.shape == (num_logits, 128)
    if num_logits:
        assert_equal(found, expected[-num_logits:])


@pytest.mark.parametrize("before", [0, 2, 15, 90])
@pytest.mark.parametrize("turn", [1, 19, 40])
def test_rollback_leaves_no_trace(shared: StreamingEngine, before: int, turn: int) -> None:
    """The longer turns overwrite the spare slots too."""
    shared.reset(0, 4)
    if before:
        shared.prefill(0, random_tokens(before))
    was, visible = shared.export_state(0), shared.visible_tokens(0)
    shared.begin_turn(0)
    shared.prefill(0, random_tokens(turn, seed=1))
    steps(shared, 0, random_tokens(5, seed=2))
    shared.rollback_turn(0)
    assert (shared.position(0), shared.visible_tokens(0)) == (before, visible)
    shared.import_state(1, was)
    after = [(shared.prefill(lane, random_tokens(turn, seed=3)), shared.decode([lane], [5])) for lane in (0, 1)]
    assert_equal(after[0][0], after[1][0])
    assert_equal(after[0][1], after[1][1])


def test_a_session_is_rebuilt_from_its_ids(shared: StreamingEngine) -> None:
    shared.reset(0, 3)
    shared.prefill(0, random_tokens(300))
    state = shared.export_state(0)
    expected = steps(shared, 0, random_tokens(30, seed=1))
    for given in (state, SessionState(3, state.position, state.token_ids)):
        shared.import_state(2, given)
        assert_equal(steps(shared, 2, random_tokens(30, seed=1)), expected)


@pytest.mark.parametrize("start", ["prefill", "decode", "rebuilt", "imported"])
def test_nan_that_a_session_leaves_harms_nobody(shared: StreamingEngine, llama: Checkpoint, start: str) -> None:
    fed = random_tokens(50)
    expected = reference_logits(llama, fed, 0, RING)
    shared.reset(1, 0)
    shared.prefill(1, fed[:-1])
    state = shared.export_state(1)
    for lane in (0, 2):
        shared.backend.session_cache(lane).fill_(torch.nan)
    shared.reset(0, 0)
    if start == "prefill":
        shared.prefill(0, fed[:-1])
    elif start == "decode":
        steps(shared, 0, fed[:-1])
    else:
        shared.import_state(0, state if start == "imported" else SessionState(0, 1049, fed[:-1]))
    logits = shared.decode([3, 0, 1], [9, fed[-1], fed[-1]])  # lane 2 is idle
    assert_equal(logits[1], expected[-1])
    assert_equal(logits[2], expected[-1])
