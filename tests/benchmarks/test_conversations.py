"""The judge of `benchmarks.crash`: it sees turns that are missing, twice, of others or with other tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

import trtstream
from benchmarks.conversations import TIE, Conversation, ScriptedTurn, Undisturbed, check_chats, check_log
from tests.sessions.records import commit_after, turn_after
from trtstream.sessions.records import TurnRecord
from trtstream.sessions.turn_log import TurnLog


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/sessions.db"


@pytest.fixture
def log(store: str) -> Iterator[TurnLog]:
    with closing(TurnLog(store)) as log:
        yield log


def write(log: TurnLog, head: TurnRecord | None, number: int, key: str | None = "k") -> TurnRecord:
    turn = turn_after(head, Random(number), request_id=f"k/{number}")
    assert log.commit([commit_after(key, head, turn)]) == [None]
    return turn


@pytest.fixture
def turns(log: TurnLog) -> list[TurnRecord]:
    first = write(log, None, 0)
    return [first, write(log, first, 1)]


def conversation(turns: list[TurnRecord]) -> Conversation:
    script = [ScriptedTurn((1,), turn.output_ids) for turn in turns]
    return Conversation("k", script, [turn.id.hex() for turn in turns])


def test_what_was_answered_is_there(store: str, turns: list[TurnRecord]) -> None:
    assert check_log(store, [conversation(turns)]) == ([], 0)
    known = conversation(turns)
    known.turn_ids.pop()
    assert check_log(store, [known]) == ([], 1)


def test_a_turn_that_is_missing(store: str, log: TurnLog, turns: list[TurnRecord]) -> None:
    later = turn_after(turns[-1], Random(2))
    faults, _ = check_log(store, [conversation([*turns, later])])
    assert "the log has" in faults[0]


def test_a_turn_that_is_twice(store: str, log: TurnLog, turns: list[TurnRecord]) -> None:
    write(log, turns[0], 1, key=None)
    faults, _ = check_log(store, [conversation(turns)])
    assert faults == ["the log has 3 turns, of which 2 belong to the sessions"]


def test_a_turn_of_another_request_or_with_other_tokens(store: str, turns: list[TurnRecord]) -> None:
    other = conversation([turns[0], replace(turns[1], pending=turns[1].pending + 1)])
    assert check_log(store, [other])[0] == ["k: turn 1 in the log is another than the script's"]
    renamed = conversation(turns)
    renamed.key = "l"
    assert len(check_log(store, [renamed])[0]) == 2


def test_scripts_have_no_near_ties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.conversations.TIE", 100 * TIE)
    undisturbed = Undisturbed(tmp_path, 2, seed=0)
    scripts = [[undisturbed.next_turn(lane) for _ in range(6)] for lane in (0, 1)]
    assert undisturbed.near_ties
    engine = Undisturbed(tmp_path / "again", 1, seed=0)._engine
    for script in scripts:
        engine.reset(0)
        pending: list[int] = []
        for turn in script:
            logits = engine.prefill(0, [*pending, *turn.prompt])
            for number, token in enumerate(turn.answer, 1):
                best = logits.topk(2)
                assert int(best.indices[0]) == token
                assert best.values[0] - best.values[1] > 99 * TIE
                if number < len(turn.answer):
                    logits = engine.decode([0], [token])[0]
            pending = [turn.answer[-1]]


def test_a_chats_script_is_what_the_model_answers(tmp_path: Path, store: str) -> None:
    undisturbed = Undisturbed(tmp_path / "engine", 1, seed=0, chats=True)
    chat = Conversation("k", [undisturbed.next_chat_turn(0) for _ in range(4)])
    with trtstream.load(tmp_path / "engine", session_store=store) as llm:
        session = llm.session("k")
        for turn in chat.script:
            text = "".join(session.generate(turn.said, chat=True, max_tokens=len(turn.answer)))
            chat.hear_text(text, str(session.turn_id))
    assert chat.faults == []
    assert check_chats(store, [chat]) == []
    other = Conversation("k", [*chat.script[:3], replace(chat.script[3], heard="?")], chat.turn_ids)
    assert check_chats(store, [other]) == ["k: turn 3 in the log is another than the script's"]
    lost = Conversation("k", chat.script, [*chat.turn_ids[:2], chat.turn_ids[3]])
    assert "the log has" in check_chats(store, [lost])[0]
