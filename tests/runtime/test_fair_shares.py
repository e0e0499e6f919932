"""Turns that give up their lane in the middle: nothing that they compute or undo may depend on it."""

from __future__ import annotations

import random

import pytest
import torch

from tests.mutants import load_mutant
from tests.runtime.clients import ENDLESS, Client, ask, assert_same_greedy, wait_until
from trtstream.errors import TrtstreamError
from trtstream.runtime import undo_log
from trtstream.runtime.scheduler import SchedulerStats
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.runtime.undo_log import UndoLog


def tokens(choose: random.Random, most: int) -> list[int]:
    return choose.choices(range(256), k=choose.randint(1, most))


def feed(engine: StreamingEngine, lane: int, choose: random.Random) -> torch.Tensor:
    """A prompt of up to 70 tokens and up to 30 single ones, past the ring's wrap; the logits after them."""
    logits = engine.prefill(lane, tokens(choose, 70))
    for token in tokens(choose, 30):
        (logits,) = engine.decode([lane], [token])
    return logits


def move(engine: StreamingEngine, lane: int, choose: random.Random) -> int:
    """Park the session, let another one use its lane, and resume it in any lane; returns the lane."""
    parked = engine.park(lane)
    feed(engine, lane, random.Random(0))
    lane = choose.randrange(engine.build.max_batch_size)
    engine.resume(lane, parked)
    return lane


def same(one: SessionState, other: SessionState) -> bool:
    assert one.kv_cache is not None
    assert other.kv_cache is not None
    books = [(state.sink_token_length, state.position, state.token_ids) for state in (one, other)]
    return books[0] == books[1] and torch.equal(one.kv_cache, other.kv_cache)


def run_turn(engine: StreamingEngine, seed: int, sinks: int, moves: bool) -> tuple[SessionState, torch.Tensor]:
    """A session with one turn behind it and one that is open: its state before that one, and the last logits."""
    choose, lane = random.Random(seed), 0
    engine.reset(lane, sinks)
    feed(engine, lane, choose)
    before = engine.export_state(lane)
    engine.begin_turn(lane)
    for _ in range(3):
        logits = feed(engine, lane, choose)
        if moves:
            lane = move(engine, lane, random.Random(choose.random()))
        else:
            choose.random()
    if moves and lane:  # the last step is on lane 0, for both to be compared there
        engine.resume(0, engine.park(lane))
    return before, logits


@pytest.mark.parametrize("sinks", [0, 4, 12])
@pytest.mark.parametrize("seed", range(4))
def test_a_turn_that_moves_computes_and_undoes_the_same(engine, seed, sinks):
    _, expected = run_turn(engine, seed, sinks, moves=False)
    undisturbed = engine.export_state(0)
    before, logits = run_turn(engine, seed, sinks, moves=True)
    assert torch.equal(logits, expected)
    assert same(engine.export_state(0), undisturbed)
    engine.rollback_turn(0)
    assert same(engine.export_state(0), before)


@pytest.mark.parametrize("seed", range(4))
def test_a_turn_that_ends_without_a_lane(engine, seed):
    before, _ = run_turn(engine, seed, 4, moves=True)
    after = engine.export_state(0)
    parked = engine.park(0)
    assert parked.position == after.position
    assert same(parked.commit_turn(), after)
    assert same(parked.rollback_turn(), before)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("self._saved_to + BLOCK), self._save_until)", "self._saved_to + BLOCK), self._save_until - 1)"),
        ("[..., slots]))", "[..., slots.roll(1)]))"),
    ],
)
def test_a_log_with_a_wrong_slot_is_noticed(engine, monkeypatch, tmp_path, right, wrong):
    monkeypatch.setattr(UndoLog, "save", load_mutant(undo_log, right, wrong, tmp_path).UndoLog.save)
    before, _ = run_turn(engine, 1, 4, moves=True)
    engine.rollback_turn(0)
    assert not same(engine.export_state(0), before)


def test_turns_that_hold_all_lanes_make_room(schedule):
    scheduler = schedule(fair_share=0.05)
    hogs = [Client(scheduler, text=f"{i}", session_key=i, **ENDLESS) for i in range(3)]
    wait_until(lambda: all(hog.outputs for hog in hogs))
    ask(scheduler, text="short", max_tokens=3)
    generated = [len(hog.outputs) for hog in hogs]
    wait_until(lambda: all(len(hog.outputs) > count for hog, count in zip(hogs, generated, strict=True)))
    for hog in hogs:
        hog.turn.cancel()
        assert hog.wait().last.finish_reason == "cancelled"
    assert scheduler.stats() == SchedulerStats(running=0, queued=0, sessions=3)


def test_without_memory_for_it_turns_keep_their_lanes(schedule):
    scheduler = schedule(fair_share=0.0, max_idle_bytes=0)
    hogs = [Client(scheduler, text=f"{i}", session_key=i, **ENDLESS) for i in range(3)]
    waiting = Client(scheduler, text="short", max_tokens=3)
    wait_until(lambda: all(len(hog.outputs) > 20 for hog in hogs))
    assert not waiting.outputs
    hogs[0].turn.cancel()
    waiting.wait()


@pytest.mark.parametrize("seed", range(3))
def test_sessions_that_share_lanes_answer_as_each_alone(schedule, engine, seed):
    """Seven sessions, three lanes that change hands at every step; some turns are cancelled or fail."""
    choose = random.Random(seed)
    shared, alone = schedule(fair_share=0.0), schedule()
    fed: dict[int, list[int]] = {key: [] for key in range(7)}
    for _ in range(3):
        prompts = {key: tokens(choose, 60) for key in fed}
        fates = {key: choose.choice(["end", "end", "cancel", "fail"]) for key in fed}
        clients = {}
        for key, prompt in prompts.items():
            options = {"input_ids": tuple(prompt), "session_key": key, "ignore_eos": True, "max_tokens": 20}
            if fates[key] == "cancel":
                options |= {"max_tokens": 1000, "cancel_after": choose.randint(1, 30)}
            if fates[key] == "fail":
                options |= {"max_tokens": 1_000_000, "timeout": choose.choice([0.02, 0.3])}
            clients[key] = Client(shared, **options)
        for key, client in clients.items():
            if fates[key] == "fail":
                with pytest.raises(TrtstreamError, match="timeout of"):
                    client.wait()
                continue
            ids = client.wait().ids
            options = {"input_ids": tuple(prompts[key]), "session_key": key, "ignore_eos": True}
            expected = ask(alone, **options, max_tokens=len(ids))
            fed[key] += prompts[key]
            assert_same_greedy(engine, fed[key], ids, expected.ids)
            assert client.last.session_tokens == expected.last.session_tokens
            fed[key] += ids
    assert shared.stats() == SchedulerStats(0, 0, sum(bool(ids) for ids in fed.values()))
