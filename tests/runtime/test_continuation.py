"""Where a turn continues: at the session's last turn, an earlier one, or nowhere; or it has its answer already."""

from __future__ import annotations

import pytest

from tests.runtime.clients import ask, refused
from trtstream.errors import TrtstreamError
from trtstream.runtime.scheduler import Scheduler

NOWHERE = "0" * 32


@pytest.fixture(params=["store", "memory"])
def any_scheduler(request) -> Scheduler:
    return request.getfixturevalue("start" if request.param == "store" else "schedule")()


def test_a_repeated_request_gets_its_answer_again(any_scheduler):
    options = {"session_key": "s", "max_tokens": 5, "ignore_eos": True}
    first = ask(any_scheduler, text="Hello", request_id="r1", **options)
    again = ask(any_scheduler, text="Hello", request_id="r1", timeout=100.0, **options)
    assert (again.ids, again.text, len(again.outputs)) == (first.ids, first.text, 1)
    for name in ("finish_reason", "num_input_tokens", "num_output_tokens", "session_tokens", "turn_id"):
        assert getattr(again.last, name) == getattr(first.last, name)
    error = refused(any_scheduler, request_id="r1", session_key="s")
    assert error.code == "conflict"
    assert "request id 'r1' was that of the session's last turn, which had another request" in str(error)
    second = ask(any_scheduler, text="Hello", request_id="r2", **options)
    assert second.last.session_tokens > first.last.session_tokens
    repeated = ask(any_scheduler, text="Hello", request_id="r2", parent_turn=None, **options)
    assert repeated.last.turn_id == second.last.turn_id


def test_a_turn_says_what_it_continues(any_scheduler):
    options = {"session_key": "s", "max_tokens": 4, "ignore_eos": True}
    first = ask(any_scheduler, text="Hello", **options).last.turn_id
    second = ask(any_scheduler, text="a", parent_turn=first, **options).last.turn_id
    error = refused(any_scheduler, session_key="s", parent_turn=first)
    assert error.code == "conflict"
    assert f"session 's' has {second} as its last turn" in str(error)
    for request in ({"session_key": "s", "session_rewind": True}, {"session_key": "other"}, {}):
        assert refused(any_scheduler, parent_turn=NOWHERE, **request).code == "not_found"
    with pytest.raises(TrtstreamError, match="session_rewind needs a parent_turn"):
        ask(any_scheduler, text="a", session_key="s", session_rewind=True)
    with pytest.raises(TrtstreamError, match="parent_turn is 'xyz'; a turn's id has 32 hexadecimal digits"):
        ask(any_scheduler, text="a", session_key="s", parent_turn="xyz")
    ask(any_scheduler, text="a", parent_turn=second, **options)


def test_a_fork_leaves_its_origin_alone(any_scheduler, schedule):
    options = {"max_tokens": 12, "ignore_eos": True}
    origin = ask(any_scheduler, text="Hello", session_key="s", **options).last.turn_id
    answers = [
        ask(any_scheduler, text="and", session_key=key, parent_turn=origin, **options) for key in ("f", "g", "s")
    ]
    undisturbed = schedule()
    ask(undisturbed, text="Hello", session_key="s", **options)
    expected = ask(undisturbed, text="and", session_key="s", **options)
    assert {tuple(answer.ids) for answer in answers} == {tuple(expected.ids)}
    assert len({answer.last.turn_id for answer in answers}) == 3


def test_a_turn_without_a_session_can_be_continued_from_the_store(start, schedule):
    options = {"max_tokens": 6, "ignore_eos": True}
    scheduler = start()
    assert ask(scheduler, text="Hello", **options).last.turn_id == ""
    first = ask(scheduler, text="Hello", session_key="s", **options)
    alone = ask(scheduler, text="a", parent_turn=first.last.turn_id, **options)
    after = ask(start(), text="b", parent_turn=alone.last.turn_id, **options)
    undisturbed = schedule()
    expected = [ask(undisturbed, text=text, session_key="s", **options).ids for text in ("Hello", "a", "b")]
    assert [first.ids, alone.ids, after.ids] == expected


def test_a_turn_of_a_session_has_its_id_from_its_first_token_on(any_scheduler):
    options = {"text": "Hello", "max_tokens": 4, "ignore_eos": True}
    turn = ask(any_scheduler, session_key="s", **options)
    assert [output.turn_id for output in turn.outputs] == [turn.last.turn_id] * 4
    assert [output.turn_id for output in ask(any_scheduler, **options).outputs] == [""] * 4
