"""Turns on a real engine: batching, lanes, cancellation, failures and shutdown."""

from __future__ import annotations

import random
import threading
from itertools import count

import pytest
import torch

from tests.runtime.clients import ENDLESS, IM_START, Client, ask, assert_same_greedy, started, wait_until
from trtstream import failpoint
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnOutput, TurnRequest, join
from trtstream.runtime.sampling import penalize_repetition
from trtstream.runtime.scheduler import Scheduler, SchedulerStats


def tokens(length: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(256), k=length))


def fail_step(engine, kind: str, after: int) -> None:
    """Let one step fail that decodes, or that feeds a prompt, after ``after`` others of its kind."""
    real, calls = engine.decode_and_prefill, count()

    def failing(lanes, tokens, chunks):
        if (lanes if kind == "decode" else chunks) and next(calls) == after:
            raise RuntimeError("out of luck")
        return real(lanes, tokens, chunks)

    engine.decode_and_prefill = failing


@pytest.mark.parametrize("limits", [{}, {"max_idle_bytes": 0}], ids=["swapped", "rebuilt"])
def test_sessions_together_answer_as_each_alone(schedule, engine, limits):
    """Seven sessions in three lanes, prompts from 1 to 90 tokens in chunks of at most 16, past the ring's wrap."""
    lengths = [[1, 30, 5], [90, 2, 17], [16, 16, 16], [40, 1, 33], [3, 3, 70], [15, 60, 1], [21, 20, 19]]
    turns = [[tokens(n, seed=10 * i + j) for j, n in enumerate(row)] for i, row in enumerate(lengths)]
    together = schedule(**limits)
    answers: list[list[list[int]]] = [[] for _ in turns]
    for j in range(3):
        clients = [
            Client(together, input_ids=row[j], session_key=i, max_tokens=5 + 4 * i, ignore_eos=True)
            for i, row in enumerate(turns)
        ]
        for i, client in enumerate(clients):
            answers[i].append(client.wait().ids)
    for i, row in enumerate(turns):
        alone, fed = schedule(), []
        for j, prompt in enumerate(row):
            expected = ask(alone, input_ids=prompt, session_key=i, max_tokens=5 + 4 * i, ignore_eos=True)
            fed += prompt
            assert_same_greedy(engine, fed, answers[i][j], expected.ids)
            assert expected.last.session_tokens == len(fed) + len(expected.ids) - 1
            fed += expected.ids
        alone.close()


def test_the_answer_is_the_engines(scheduler, engine):
    prompt = tokens(50, seed=1)
    client = ask(scheduler, input_ids=prompt, max_tokens=30, ignore_eos=True, return_log_probs=True)
    logits = engine.prefill(0, prompt)
    for output in client.outputs:
        (token,), (log_prob,) = output.token_ids, output.log_probs
        assert token == int(logits.argmax())
        assert log_prob == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)
        logits = engine.decode([0], [token])[0]
    assert sum(join(client.outputs).byte_counts) == len(client.text.encode())
    assert join(ask(scheduler, input_ids=prompt, max_tokens=3).outputs).byte_counts == ()  # nobody has asked
    assert (client.last.num_input_tokens, client.last.num_output_tokens, client.last.finish_reason) == (
        50,
        30,
        "length",
    )


def test_the_repetition_penalty_looks_at_what_the_session_sees(scheduler, engine):
    prompt = tokens(10, seed=2)
    client = ask(scheduler, input_ids=prompt, max_tokens=40, ignore_eos=True, repetition_penalty=1.8)
    logits = engine.prefill(0, prompt)
    for token in client.ids:
        assert token == int(penalize_repetition(logits, engine.visible_tokens(0), 1.8).argmax())
        logits = engine.decode([0], [token])[0]
    assert client.ids != ask(scheduler, input_ids=prompt, max_tokens=40, ignore_eos=True).ids


def test_frequency_penalties_look_at_the_answer_alone(scheduler, engine):
    prompt, penalties = tokens(10, seed=2), {"frequency_penalty": 0.5, "presence_penalty": 0.25}
    client = ask(scheduler, input_ids=prompt, max_tokens=40, ignore_eos=True, **penalties)
    logits, answer = engine.prefill(0, prompt), torch.zeros(engine.model.vocab_size)
    for token in client.ids:
        assert token == int((logits - 0.5 * answer - 0.25 * (answer > 0)).argmax())
        answer[token] += 1
        logits = engine.decode([0], [token])[0]
    assert client.ids != ask(scheduler, input_ids=prompt, max_tokens=40, ignore_eos=True).ids


def test_a_long_prompt_does_not_stall_other_sessions_tokens(scheduler):
    decoding = started(scheduler, input_ids=(1,), **ENDLESS)
    before = len(decoding.outputs)
    ask(scheduler, input_ids=tokens(400, seed=3), max_tokens=1)
    assert len(decoding.outputs) - before >= 400 // 16 - 1
    decoding.turn.cancel()
    decoding.wait()


def test_a_short_prompt_does_not_wait_for_a_long_one(scheduler):
    long = Client(scheduler, input_ids=tokens(20_000, seed=4), max_tokens=1)
    ask(scheduler, input_ids=tokens(20, seed=5), max_tokens=2)
    assert not long.outputs
    long.turn.cancel()
    assert long.wait().last.finish_reason == "cancelled"


def test_an_end_token_ends_the_turn_and_has_no_text(scheduler):
    free = ask(scheduler, text="abc", max_tokens=20, ignore_eos=True)
    end = free.ids[7]
    first = free.ids.index(end)
    client = ask(scheduler, text="abc", max_tokens=20, end_id=end)
    assert client.ids == free.ids[: first + 1]
    assert client.last.finish_reason == "stop"
    assert client.text == "".join(output.text for output in free.outputs[:first])
    assert ask(scheduler, text="abc", max_tokens=20, end_id=end, ignore_eos=True).ids == free.ids


def test_a_stop_word_across_tokens(scheduler, tokenizer):
    options = {"text": "abc", "max_tokens": 60, "ignore_eos": True, "temperature": 1.0, "random_seed": 1}
    free = ask(scheduler, **options)
    word = free.text[20:23]
    stopped = ask(scheduler, **options, stop_words=(word, "no such word"), session_key="s")
    assert len(tokenizer.encode(word)) > 1
    assert stopped.text == free.text[: free.text.index(word)]
    assert stopped.last.finish_reason == "stop"
    assert stopped.ids == free.ids[: len(stopped.ids)]
    # Its tokens are in the session: all but the last, which the next turn feeds first.
    after = ask(scheduler, text="x", session_key="s", max_tokens=1, session_tokens=3 + len(stopped.ids) - 1)
    assert after.last.session_tokens == 3 + len(stopped.ids) + 1


def test_a_stop_word_that_is_a_special_token(scheduler):
    """Such a token has no text, and ends the answer all the same."""
    options = {"text": "abc", "max_tokens": 2000, "ignore_eos": True, "temperature": 8.0, "random_seed": 3}
    free = ask(scheduler, **options)
    at = free.ids.index(IM_START)
    stopped = ask(scheduler, **options, stop_words=("<|im_start|>", "no such word"))
    assert stopped.ids == free.ids[: at + 1]
    assert stopped.last.finish_reason == "stop"
    assert free.text.startswith(stopped.text)


def test_text_is_streamed_in_whole_characters(scheduler, tokenizer):
    for seed in range(3):
        client = ask(scheduler, text="😀", max_tokens=100, ignore_eos=True, temperature=1.0, random_seed=seed)
        assert len(client.outputs) == 100
        assert client.text == tokenizer.decode(client.ids, skip_special_tokens=True)


def test_a_seed_fixes_the_answer(scheduler):
    def answer(seed: int | None) -> list[int]:
        options = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "random_seed": seed}
        return ask(scheduler, text="abc", max_tokens=20, **options).ids

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)
    assert answer(None) != answer(None)


def test_a_cancelled_turn_frees_its_lane_and_its_session_goes_on(schedule, scheduler):
    running = [started(scheduler, text=f"{i}", session_key=i, **ENDLESS) for i in range(3)]
    waiting = Client(scheduler, text="waiting", max_tokens=3)
    wait_until(lambda: scheduler.stats() == SchedulerStats(running=3, queued=1, sessions=0))
    running[1].turn.cancel()
    waiting.wait()
    cancelled = running[1].wait()
    assert (cancelled.last.finish_reason, cancelled.last.token_ids) == ("cancelled", ())
    assert cancelled.last.num_output_tokens == len(cancelled.ids)
    following = ask(scheduler, text="more", session_key=1, max_tokens=20, session_tokens=cancelled.last.session_tokens)

    undisturbed = schedule()
    same = ask(undisturbed, text="1", session_key=1, max_tokens=len(cancelled.ids), ignore_eos=True)
    assert same.ids == cancelled.ids
    assert same.last.session_tokens == cancelled.last.session_tokens
    assert ask(undisturbed, text="more", session_key=1, max_tokens=20).ids == following.ids


def test_a_turn_cancelled_before_its_first_token_never_was(scheduler):
    first = ask(scheduler, text="first", session_key="s", max_tokens=5)
    prefilling = Client(scheduler, input_ids=tokens(20_000, seed=6), session_key="s")
    wait_until(lambda: scheduler.stats().running)
    prefilling.turn.cancel()
    assert prefilling.wait().outputs == [TurnOutput("", (), (), "cancelled", 20_000, 0, first.last.session_tokens)]
    ask(scheduler, text="go on", session_key="s", max_tokens=1, session_tokens=first.last.session_tokens)


def test_a_queued_turn_can_be_cancelled(scheduler):
    running = [started(scheduler, text="a", **ENDLESS) for _ in range(3)]
    queued = Client(scheduler, text="b", session_key="s")
    queued.turn.cancel()
    assert queued.wait().last.finish_reason == "cancelled"
    assert all(not isinstance(output, Exception) and not output.finish_reason for c in running for output in c.outputs)


def test_a_client_that_vanishes_is_a_cancelled_turn(scheduler):
    calls = []

    def vanished(output) -> None:
        calls.append(output)
        raise ConnectionError("gone")

    scheduler.submit(TurnRequest(text="a", session_key="s", **ENDLESS), vanished)
    wait_until(lambda: calls and scheduler.stats().running == 0)
    assert len(calls) == 1
    assert scheduler.stats().sessions == 1
    assert ask(scheduler, text="b", session_key="s", max_tokens=2).ids


@pytest.mark.parametrize("resident", [True, False], ids=["in its lane", "saved"])
@pytest.mark.parametrize("failure", ["deadline", "decode", "prefill"])
def test_a_failed_turn_leaves_the_session_as_it_was(schedule, engine, failure, resident):
    scheduler, undisturbed = schedule(engine), schedule()
    first = {"input_ids": tokens(45, seed=7), "session_key": "s", "max_tokens": 20, "ignore_eos": True}
    before = ask(scheduler, **first)
    ask(undisturbed, **first)
    if not resident:
        for i in range(3):
            ask(scheduler, text="others", session_key=i, max_tokens=1)
    turn = {"input_ids": tokens(200, seed=8), "session_key": "s", **ENDLESS}
    if failure == "deadline":
        client = Client(scheduler, **turn, timeout=0.3)
    else:
        fail_step(engine, failure, after=30 if failure == "decode" else 7)
        client = Client(scheduler, **turn)
    with pytest.raises(TrtstreamError, match=r"timeout of 0.3 s|failed in this turn: RuntimeError: out of luck"):
        client.wait()
    following = {"input_ids": tokens(10, seed=9), "session_key": "s", "max_tokens": 40, "ignore_eos": True}
    after = ask(scheduler, **following, session_tokens=before.last.session_tokens)
    assert after.ids == ask(undisturbed, **following).ids


def test_a_failed_first_turn_leaves_no_session(scheduler):
    with pytest.raises(TrtstreamError, match="timeout"):
        ask(scheduler, text="a", session_key="s", timeout=0.1, **ENDLESS)
    wait_until(lambda: scheduler.stats() == SchedulerStats(0, 0, 0))
    ask(scheduler, text="a", session_key="s", session_tokens=0, max_tokens=1)


def test_a_failed_session_start_keeps_the_old_session(scheduler):
    old = ask(scheduler, text="old", session_key="s", max_tokens=3)
    with pytest.raises(TrtstreamError, match="timeout"):
        ask(scheduler, text="new", session_key="s", session_start=True, timeout=0.1, **ENDLESS)
    ask(scheduler, text="go on", session_key="s", session_tokens=old.last.session_tokens, max_tokens=1)


def test_an_engine_error_fails_the_turns_of_its_step_and_nothing_else(schedule, engine):
    scheduler = schedule(engine)
    clients = [started(scheduler, text=f"{i}", session_key=i, **ENDLESS) for i in range(3)]
    queued = Client(scheduler, text="queued", max_tokens=3)
    fail_step(engine, "decode", after=3)
    for client in clients:
        with pytest.raises(TrtstreamError, match="out of luck"):
            client.wait()
    assert queued.wait().last.finish_reason == "length"
    wait_until(lambda: scheduler.stats() == SchedulerStats(0, 0, 0))


def test_a_session_that_cannot_be_undone_is_lost_and_its_lane_is_not(schedule, engine, monkeypatch):
    scheduler = schedule(engine)
    ask(scheduler, text="a", session_key="s", max_tokens=3)
    fail_step(engine, "decode", after=0)
    monkeypatch.setattr(engine, "rollback_turn", lambda lane: 1 // 0)
    with pytest.raises(TrtstreamError, match="out of luck"):
        ask(scheduler, text="b", session_key="s", max_tokens=3)
    with pytest.raises(TrtstreamError, match="does not exist"):
        ask(scheduler, text="c", session_key="s", session_tokens=5, max_tokens=3)
    together = [Client(scheduler, text=f"{i}", session_key=i, max_tokens=3) for i in range(3)]
    assert all(client.wait().last.finish_reason == "length" for client in together)


def test_drain_waits_for_a_turn_that_is_being_read(scheduler):
    text = "long " * 4_000
    long = Client(scheduler, text=text, max_tokens=1)
    assert scheduler.drain(120)
    assert (long.last.finish_reason, long.last.num_input_tokens) == ("length", len(text))


def test_close_ends_a_turn_that_is_being_read(scheduler):
    long = [Client(scheduler, text="long " * 200_000, max_tokens=1) for _ in range(3)]
    scheduler.close()
    for client in long:
        with pytest.raises(TrtstreamError, match=r"the engine is closed|closed before the turn ended"):
            client.wait()


def test_drain_lets_turns_end_and_takes_no_new_ones(scheduler):
    clients = [Client(scheduler, text=f"{i}", max_tokens=10, ignore_eos=True) for i in range(5)]
    assert scheduler.drain(60)
    assert [client.last.finish_reason for client in clients] == ["length"] * 5
    with pytest.raises(TrtstreamError, match="shutting down"):
        Client(scheduler, text="late")


def test_drain_gives_up_in_time_and_close_ends_the_rest(scheduler):
    running = started(scheduler, text="a", **ENDLESS)
    assert not scheduler.drain(0.1)
    scheduler.close()
    with pytest.raises(TrtstreamError, match="closed before the turn ended"):
        running.wait()
    with pytest.raises(TrtstreamError, match="the engine is closed"):
        Client(scheduler, text="late")
    assert scheduler.stats().running == 0


def test_clients_that_come_and_go_leave_nothing_behind(scheduler, engine):
    """Four threads with sessions of their own: some turns end, some are cancelled, some time out."""
    wrong = []

    def client(seed: int) -> None:
        choose = random.Random(seed)
        seen = 0
        for _ in range(25):
            options = {"session_key": seed, "session_tokens": seen, "ignore_eos": True, "random_seed": 1}
            options |= {"input_ids": tokens(choose.randrange(1, 40), choose.random()), "temperature": 1.0}
            match choose.randrange(3):
                case 0:
                    options |= {"max_tokens": choose.randrange(1, 20)}
                case 1:
                    options |= {"max_tokens": 1000, "cancel_after": choose.randrange(1, 5)}
                case 2:
                    options |= {"max_tokens": 1000, "timeout": choose.choice([1e-6, 0.01])}
            try:
                seen = ask(scheduler, **options).last.session_tokens
            except TrtstreamError as error:
                if "timeout" not in str(error):
                    wrong.append(error)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    wait_until(lambda: scheduler.stats() == SchedulerStats(running=0, queued=0, sessions=4))
    prompt = tokens(30, seed=11)
    assert_same_greedy(
        engine,
        list(prompt),
        ask(scheduler, input_ids=prompt, max_tokens=5, ignore_eos=True).ids,
        ask(Scheduler(engine, None), input_ids=prompt, max_tokens=5, ignore_eos=True).ids,
    )


def test_an_engine_without_a_tokenizer_takes_and_gives_ids(engine):
    scheduler = Scheduler(engine, None)
    client = ask(scheduler, input_ids=(1, 2, 3), max_tokens=5, ignore_eos=True)
    assert (len(client.ids), client.text) == (5, "")
    with pytest.raises(TrtstreamError, match="no tokenizer"):
        Client(scheduler, text="a")
    scheduler.close()


def test_inference_leaves_the_callers_torch_alone(scheduler):
    ask(scheduler, text="a", max_tokens=1, temperature=1.0, random_seed=1)
    state = torch.get_rng_state()
    ask(scheduler, text="a", max_tokens=5, temperature=1.0, random_seed=1)
    assert torch.equal(state, torch.get_rng_state())


def test_every_step_waits_for_a_benchmarks_device(scheduler, engine, monkeypatch):
    waited, real = [], engine.decode_and_prefill
    monkeypatch.setattr(failpoint, "_step_seconds", 0.001)
    monkeypatch.setattr(failpoint.time, "sleep", waited.append)
    steps = []
    monkeypatch.setattr(scheduler._engine, "decode_and_prefill", lambda *step: steps.append(step) or real(*step))
    ask(scheduler, text="Hello", max_tokens=5, ignore_eos=True)
    assert waited.count(0.001) == len(steps) == 5
