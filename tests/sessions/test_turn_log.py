"""The log of turns, on SQLite and on PostgreSQL: what one server and several do to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from tests.sessions.records import commit_after, turn_after
from trtstream.errors import TrtstreamError
from trtstream.sessions.records import Commit, TurnRecord, new_turn_id, parse_turn_id
from trtstream.sessions.turn_log import TurnLog

KEYS = ("a", "b", 7, "7")


def add(log: TurnLog, key: str | int | None, head: TurnRecord | None, turn: TurnRecord) -> TurnRecord:
    assert log.commit([commit_after(key, head, turn)], 0) == [None]
    return turn


def code(log: TurnLog, commit: Commit) -> str | None:
    """The code of a commit's error, None if it was made."""
    (error,) = log.commit([commit], 0)
    return None if error is None else error.code


def test_a_turn_is_read_as_it_was_committed(log: TurnLog, url: str, open_log: Callable[..., TurnLog]) -> None:
    random = Random(0)
    first = add(log, "k", None, turn_after(None, random, system="Be kind.", prompt=None, request_id="r"))
    second = add(log, "k", first, turn_after(first, random))
    other = open_log(url)
    assert (other.head("k"), other.turn(first.id), other.branch(second.id)) == (second, first, [first, second])
    assert other.head("nobody") is None
    assert other.turn(new_turn_id()) is None
    assert second.output_ids == (*[*second.tokens, second.pending][-second.num_output_tokens :],)


def test_a_number_and_its_digits_are_two_sessions(log: TurnLog) -> None:
    random = Random(1)
    number, text = add(log, 77, None, turn_after(None, random)), add(log, "77", None, turn_after(None, random))
    assert (log.head(77), log.head("77")) == (number, text)
    assert {summary.key for summary in log.summaries()} == {77, "77"}


def test_one_of_a_group_that_loses_does_not_hinder_the_others(log: TurnLog) -> None:
    random = Random(2)
    heads = {key: add(log, key, None, turn_after(None, random)) for key in KEYS}
    add(log, "b", heads["b"], turn_after(heads["b"], random))  # another server was faster
    commits = [commit_after(key, heads[key], turn_after(heads[key], random)) for key in KEYS]
    errors = log.commit(commits, 0)
    assert [None if error is None else error.code for error in errors] == [None, "conflict", None, None]
    for commit, error in zip(commits, errors, strict=True):
        assert commit.turn is not None
        assert commit.key is not None
        assert (log.turn(commit.turn.id) is None) == (error is not None)
        assert (log.head(commit.key) == commit.turn) == (error is None)


def test_a_commit_that_is_made_twice_is_one_turn(log: TurnLog) -> None:
    random = Random(3)
    first = turn_after(None, random)
    assert [code(log, commit_after("k", None, first)) for _ in range(2)] == [None, None]
    second = turn_after(first, random)
    assert [code(log, commit_after("k", first, second)) for _ in range(2)] == [None, None]
    assert log.branch(second.id) == [first, second]


def test_a_turn_under_one_that_was_deleted_is_refused(log: TurnLog) -> None:
    random = Random(4)
    first = add(log, "k", None, turn_after(None, random))
    assert log.delete("k")
    assert not log.delete("k")
    assert log.turn(first.id) is None
    assert code(log, commit_after("k", first, turn_after(first, random))) == "not_found"
    assert code(log, commit_after("fork", None, turn_after(first, random))) == "not_found"


def test_a_session_is_deleted_only_where_it_points_to(log: TurnLog) -> None:
    random = Random(5)
    first = add(log, "k", None, turn_after(None, random))
    second = add(log, "k", first, turn_after(first, random))
    assert code(log, Commit(None, "k", first.id)) == "conflict"
    assert log.head("k") == second
    assert code(log, Commit(None, "k", second.id)) is None
    assert code(log, Commit(None, "k", second.id)) is None  # it is gone already


def test_a_fork_keeps_the_turns_that_it_shares(log: TurnLog) -> None:
    random = Random(6)
    first = add(log, "k", None, turn_after(None, random))
    second = add(log, "k", first, turn_after(first, random))
    third = add(log, "k", second, turn_after(second, random))
    rewound = add(log, "k", third, turn_after(second, random))
    fork = add(log, "fork", None, turn_after(first, random))
    assert log.delete("k")
    assert [log.turn(turn.id) is not None for turn in (first, second, third, rewound, fork)] == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert log.branch(fork.id) == [first, fork]


def test_a_sweep_takes_what_nothing_keeps(url: str, open_log: Callable[..., TurnLog]) -> None:
    random = Random(7)
    log = open_log(url, 100.0)
    first = add(log, "old", None, turn_after(None, random, created=1000.0))
    kept = add(log, "fork", None, turn_after(first, random, created=1090.0))
    taken_back = add(log, "fork", kept, turn_after(kept, random, created=1091.0))
    rewound = add(log, "fork", taken_back, turn_after(kept, random, created=1092.0))
    alone = add(log, None, None, turn_after(first, random, created=1093.0))
    log.sweep(1099.0, keep=50)
    assert {summary.key for summary in log.summaries()} == {"old", "fork"}
    log.sweep(1142.0, keep=50)
    assert {summary.key for summary in log.summaries()} == {"fork"}
    found = [log.turn(turn.id) is not None for turn in (first, kept, taken_back, rewound, alone)]
    assert found == [True, True, False, True, False]
    log.sweep(2000.0, keep=50)
    assert log.summaries() == []
    assert log.turn(first.id) is None


@pytest.mark.parametrize("count", [0, 1, 7, 40, 1000])
@pytest.mark.parametrize("sinks", [0, 3, 30])
def test_recent_ids_are_the_sinks_and_the_last_tokens(log: TurnLog, sinks: int, count: int) -> None:
    random = Random(8)
    head, tokens = None, []
    for _ in range(12):
        head = add(log, "k", head, turn_after(head, random, sinks))
        tokens += head.tokens
        assert log.recent_ids(head, count) == [*tokens[:sinks], *tokens[max(sinks, len(tokens) - count) :]]


def test_a_repeated_request_is_found_under_its_parent(log: TurnLog) -> None:
    random = Random(9)
    first = add(log, "k", None, turn_after(None, random, request_id="one", request_hash=b"h" * 32))
    second = add(log, "k", first, turn_after(first, random, request_id="two", request_hash=b"i" * 32))
    assert log.repeated(first.id, "two", b"i" * 32) == second
    assert log.repeated(first.id, "two", b"h" * 32) is None
    assert log.repeated(second.id, "two", b"i" * 32) is None


@pytest.mark.quick("*-0")
@pytest.mark.parametrize("seed", range(4))
def test_random_schedules_of_two_servers(url: str, open_log: Callable[..., TurnLog], seed: int) -> None:
    """Turns, forks, rewinds, late duplicates and deletions, compared with a plain dict after each."""
    random = Random(seed)
    logs = [open_log(url) for _ in range(2)]
    turns: dict[bytes, TurnRecord] = {}
    heads: dict[str | int, TurnRecord] = {}
    past: list[Commit] = []

    def ancestors(turn: TurnRecord) -> list[TurnRecord]:
        return [turn] if turn.parent is None else [*ancestors(turns[turn.parent]), turn]

    for _ in range(80):
        log, key, action = random.choice(logs), random.choice(KEYS), random.random()
        head = heads.get(key)
        if action < 0.1 and head is not None:
            assert log.delete(key)
            del heads[key]
            kept = {turn.id for other in heads.values() for turn in ancestors(other)}
            turns = {i: turn for i, turn in turns.items() if turn.root != head.root or i in kept}
        elif action < 0.2 and past:  # a late duplicate: whether its turn is there or not, nothing changes
            commit = random.choice(past)
            assert commit.turn is not None
            there = commit.turn.id in turns
            if there or commit.expected != (heads[commit.key].id if commit.key in heads else None):
                assert (code(log, commit) is None) == there
        else:
            seen = head if random.random() < 0.8 or not turns else random.choice([*turns.values()])
            parent = random.choice([*turns.values()]) if turns and random.random() < 0.3 else head
            commit = commit_after(key, seen, turn_after(parent, random))
            assert commit.turn is not None
            if seen is head:
                assert code(log, commit) is None
                turns[commit.turn.id] = heads[key] = commit.turn
            else:
                assert code(log, commit) == "conflict"
            past.append(commit)
        other = random.choice(logs)
        assert {key: other.head(key) for key in KEYS} == {key: heads.get(key) for key in KEYS}
        if turns:
            turn = random.choice([*turns.values()])
            assert other.branch(turn.id) == ancestors(turn)
    for commit in past:
        assert commit.turn is not None
        assert (logs[0].turn(commit.turn.id) is not None) == (commit.turn.id in turns)


def test_of_servers_that_race_one_wins_each_turn(url: str, open_log: Callable[..., TurnLog]) -> None:
    first = add(open_log(url), "k", None, turn_after(None, Random(0)))
    won: list[bytes] = []

    def race(seed: int) -> None:
        random, log = Random(seed), open_log(url)
        for _ in range(15):
            head = log.head("k")
            assert head is not None
            turn = turn_after(head, random)
            if code(log, commit_after("k", head, turn)) is None:
                won.append(turn.id)

    threads = [threading.Thread(target=race, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = open_log(url)
    head = log.head("k")
    assert head is not None
    assert {turn.id for turn in log.branch(head.id)} == {first.id, *won}
    assert len(log.branch(head.id)) == len(won) + 1 > 15


@pytest.mark.parametrize("text", ["", "12", "g" * 32, "A" * 32, "a" * 34, "a " * 16])
def test_what_is_no_turn_id_is_refused(text: str) -> None:
    with pytest.raises(TrtstreamError, match=r"parent_turn is .*; a turn's id has 32 hexadecimal digits"):
        parse_turn_id("parent_turn", text)
    turn_id = new_turn_id()
    assert parse_turn_id("parent_turn", turn_id.hex()) == turn_id


def test_a_turn_that_is_changed_is_another(log: TurnLog) -> None:
    """Nothing overwrites a turn, not even a commit with its id."""
    turn = add(log, "k", None, turn_after(None, Random(0)))
    code(log, commit_after("k", turn, replace(turn, text="changed")))
    assert log.head("k") == turn
