"""Sessions as clients see them, and where they wait between turns."""

from __future__ import annotations

from random import Random

import pytest

from tests.runtime.clients import ENDLESS, EOS, Client, ask, wait_until
from tests.sessions.records import turn_after
from trtstream.errors import TrtstreamError
from trtstream.runtime.conversation import Session
from trtstream.runtime.requests import TurnOutput
from trtstream.runtime.scheduler_limits import SchedulerLimits
from trtstream.runtime.session import SessionStore


def refused(scheduler, **request) -> str:
    with pytest.raises(TrtstreamError) as error:
        ask(scheduler, **{"text": "x", "max_tokens": 1, **request})
    return str(error.value)


def test_a_turn_feeds_its_own_tokens_and_the_pending_one(scheduler, engine):
    first = ask(scheduler, text="Hello", session_key="s", max_tokens=4, ignore_eos=True)
    assert (first.last.num_input_tokens, first.last.session_tokens) == (5, 5 + 3)
    second = ask(scheduler, text="you", session_key="s", max_tokens=4, ignore_eos=True)
    assert (second.last.num_input_tokens, second.last.session_tokens) == (3, 8 + 1 + 3 + 3)
    fed = [*b"Hello", *first.ids, *b"you"]
    assert second.ids[0] == int(engine.prefill(0, fed).argmax())


def test_an_empty_text_goes_on_with_the_answer(scheduler):
    whole = ask(scheduler, text="Hello", max_tokens=20, ignore_eos=True)
    ask(scheduler, text="Hello", session_key="s", max_tokens=12, ignore_eos=True)
    assert ask(scheduler, text="", session_key="s", max_tokens=8, ignore_eos=True).ids == whole.ids[12:]


def test_one_shot_requests_leave_no_session(scheduler):
    ask(scheduler, text="Hello", max_tokens=2)
    wait_until(lambda: scheduler.stats().running == 0)
    assert scheduler.stats().sessions == 0


def test_session_tokens_must_be_right(scheduler):
    seen = ask(scheduler, text="Hello", session_key="s", session_tokens=0, max_tokens=3).last.session_tokens
    assert refused(scheduler, session_key="s", session_tokens=seen + 1) == (
        f"session 's' has seen {seen} tokens and session_tokens is {seen + 1}; send the number in its last response"
    )
    assert "has seen" in refused(scheduler, session_key="s", session_tokens=0)
    assert "does not exist" in refused(scheduler, session_key="other", session_tokens=seen)
    ask(scheduler, text="x", session_key="s", session_tokens=seen, max_tokens=1)


def test_a_number_and_its_digits_are_two_sessions(scheduler):
    seen = ask(scheduler, text="Hello", session_key=77, max_tokens=3).last.session_tokens
    assert "does not exist" in refused(scheduler, session_key="77", session_tokens=seen)


def test_session_start_starts_over(scheduler):
    first = ask(scheduler, text="Hello", session_key="s", max_tokens=3)
    again = ask(scheduler, text="Hello", session_key="s", session_start=True, max_tokens=3)
    assert (again.ids, again.last.session_tokens) == (first.ids, first.last.session_tokens)
    assert scheduler.stats().sessions == 1


def test_session_end_ends_it_after_the_turn_or_alone(scheduler):
    seen = ask(scheduler, text="Hello", session_key="s", session_end=True, max_tokens=3).last.session_tokens
    assert "does not exist" in refused(scheduler, session_key="s", session_tokens=seen)
    seen = ask(scheduler, text="Hello", session_key="s", max_tokens=3).last.session_tokens
    ended = ask(scheduler, session_key="s", session_end=True, session_tokens=seen)
    assert ended.outputs == [TurnOutput("", (), (), "stop", 0, 0, seen)]
    assert scheduler.stats().sessions == 0
    assert ask(scheduler, session_key="s", session_end=True).last.session_tokens == 0


def test_two_turns_at_once_on_one_session(scheduler):
    running = Client(scheduler, text="Hello", session_key="s", **ENDLESS)
    assert refused(scheduler, session_key="s") == ("session 's' has a turn running; wait for its end, or cancel it")
    running.turn.cancel()
    running.wait()
    ask(scheduler, text="x", session_key="s", max_tokens=1)


def test_a_refused_prompt_lets_go_of_its_session(scheduler):
    ask(scheduler, text="Hello", session_key="s", max_tokens=1)
    assert "system is for a session's first turn" in refused(scheduler, session_key="s", system="Rules")
    ask(scheduler, text="x", session_key="s", max_tokens=1)


def test_a_system_text_stays_in_sight(schedule, engine):
    scheduler = schedule(engine)
    ask(scheduler, text="Hello", system="Be brief", session_key="s", max_tokens=80, ignore_eos=True)
    assert bytes(engine.visible_tokens(next(s for s in range(3) if engine.position(s)))[:8]) == b"Be brief"
    assert "this engine can pin 12" in refused(scheduler, system="Be brief, please")


def test_sessions_beyond_the_limit_expire_oldest_first(schedule):
    scheduler = schedule(max_sessions=5)
    seen = [ask(scheduler, text="Hello", session_key=i, max_tokens=3).last.session_tokens for i in range(5)]
    seen[0] = ask(scheduler, text="x", session_key=0, max_tokens=1).last.session_tokens
    ask(scheduler, text="Hello", session_key=5, max_tokens=3)
    assert scheduler.stats().sessions == 5
    assert "does not exist" in refused(scheduler, session_key=1, session_tokens=seen[1])
    ask(scheduler, text="x", session_key=0, session_tokens=seen[0], max_tokens=1)


def test_idle_sessions_keep_to_their_memory(engine):
    """The oldest drop their cache and keep their ids; a session that returns gets a lane again."""
    one = engine.export_state(0).kv_cache.nbytes
    store = SessionStore(engine, SchedulerLimits(max_idle_bytes=2 * one))
    sessions = [Session(key, 4) for key in range(7)]
    for session in sessions:
        assert store.enter(session) == []
        engine.prefill(store.lanes[session], [session.key] * 6)
        store.commit(session, turn_after(None, Random(0), tokens=[session.key] * 6, num_output_tokens=1), ends=False)
    assert list(store.lanes) == sessions[4:]
    assert [store.saved[session].kv_cache is not None for session in sessions[:4]] == [False, False, True, True]
    assert store.enter(sessions[3]) == []
    assert engine.visible_tokens(store.lanes[sessions[3]]) == [3] * 6
    assert store.enter(sessions[0]) == [0]  # its sinks and one more are in; the rest is to be fed
    assert engine.position(store.lanes[sessions[0]]) == 5
    assert store.enter(sessions[1]) == [1]
    assert store.enter(sessions[2]) is None  # all lanes have running turns
    assert {session: store.lanes[session] for session in (sessions[0], sessions[1], sessions[3])} == store.lanes
    assert sorted(store.lanes.values()) == [0, 1, 2]


def test_chat_turns_join_up_to_the_template_of_the_whole_conversation(schedule, engine, tokenizer):
    """One turn ends with the end-of-turn token, one is cut short; the default system prompt comes once."""
    scheduler = schedule(engine)
    free = ask(scheduler, text="Hi", chat=True, max_tokens=6, ignore_eos=True, session_key="free")
    fed: list[int] = []
    real = engine.decode_and_prefill

    def recording(lanes, tokens, chunks):
        for chunk in chunks.values():
            fed.extend(chunk)
        return real(lanes, tokens, chunks)

    engine.decode_and_prefill = recording
    conversation = [{"role": "user", "content": "Hi"}]
    answer = ask(scheduler, text="Hi", chat=True, max_tokens=6, session_key="s", ignore_eos=True)
    assert answer.ids == free.ids
    expected = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(fed) == expected
    fed.clear()
    ask(scheduler, text="More", chat=True, max_tokens=2, session_key="s")
    closed = [answer.ids[-1], EOS, *b"\n", *tokenizer.encode("<|im_start|>user\nMore<|im_end|>\n")]
    assert fed == [*closed, *tokenizer.encode("<|im_start|>assistant\n")]
