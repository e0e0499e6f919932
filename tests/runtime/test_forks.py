"""Forks and other answers to a question: a copy of a session that is in memory, which needs nothing of the log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, event

from tests.runtime.clients import ENDLESS, Client, ask, assert_same_greedy, started, wait_until
from tests.runtime.test_journal import Branch


@pytest.fixture
def walks() -> Iterator[list[str]]:
    """The statements that have walked over a conversation's turns since the test began."""
    statements: list[str] = []

    def note(connection, cursor, statement, *others) -> None:
        if "RECURSIVE" in statement:
            statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield statements
    event.remove(Engine, "before_cursor_execute", note)


def test_a_fork_copies_a_session_and_reads_no_ids(start, schedule, engine, walks):
    scheduler, oracle = start(), schedule()
    parent = Branch().go_on(scheduler, oracle, engine, [*range(90)], 5, session_key="s")
    parent.go_on(scheduler, oracle, engine, [1, 2, 3], 5, session_key="fork")
    assert not walks


def test_another_answer_to_the_last_question_reads_no_ids(start, schedule, engine, walks):
    """Again and again, and as a fork, though turns behind the window have overwritten slots; but not further back."""
    scheduler, oracle = start(), schedule()
    first = Branch().go_on(scheduler, oracle, engine, [*range(90)], 5, session_key="s")
    second = first.go_on(scheduler, oracle, engine, [1, 2, 3], 40, session_key="s")
    for count in (1, 40):
        second = first.go_on(scheduler, oracle, engine, [4] * count, 7, session_key="s", session_rewind=True)
    first.go_on(scheduler, oracle, engine, [5], 9)
    assert not walks
    third = second.go_on(scheduler, oracle, engine, [6], 3, session_key="s")
    first.go_on(scheduler, oracle, engine, [7], 9, session_key="s", session_rewind=True)
    assert walks
    third.go_on(scheduler, oracle, engine, [8], 3, session_key="another")


def test_a_fork_of_a_session_that_goes_on_first_reads_its_ids(start, schedule, engine, walks):
    """The session is there when the fork is read, and has been continued when the fork gets its lane."""
    scheduler, oracle = start(fair_share=1e9), schedule()
    parent = Branch().go_on(scheduler, oracle, engine, [*range(90)], 5, session_key="s")
    blockers = [started(scheduler, text="a", **ENDLESS) for _ in range(engine.build.max_batch_size)]
    request = {"input_ids": (1, 2, 3), "max_tokens": 5, "ignore_eos": True}
    clients = []
    for key in ("s", "fork"):
        clients.append(Client(scheduler, **request, session_key=key, parent_turn=parent.turn_id))
        wait_until(lambda: scheduler.stats().queued == len(clients))
    assert not walks
    for blocker in blockers:
        blocker.turn.cancel()
    fed = [*parent.tokens, 1, 2, 3]
    expected = ask(oracle, **{**request, "input_ids": tuple(fed)})
    for client in clients:
        assert_same_greedy(engine, fed, client.wait().ids, expected.ids)
        assert client.last.session_tokens == len(fed) + 4
    assert len(walks) == 1
    assert scheduler.drain(60)
