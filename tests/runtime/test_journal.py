"""Sessions in a store: they continue exactly, whatever happens to schedulers and engines between and in their turns."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import pytest

import trtstream
from tests.checkpoints import write_checkpoint
from tests.pages import ROOT
from tests.runtime.clients import ENDLESS, EOS, Client, ask, assert_same_greedy, refused, wait_until
from tests.sessions.conftest import DATABASES
from tests.sessions.records import commit_after, turn_after
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.cpu import build_cpu_engine
from trtstream.errors import TrtstreamError
from trtstream.runtime.journal import THREADS, Journal
from trtstream.runtime.loading import load_engine
from trtstream.runtime.tier_costs import TierCosts
from trtstream.sessions.recall import Question, Vocabulary
from trtstream.sessions.spans import Cutter
from trtstream.sessions.turn_log import TurnLog
from trtstream.settings import BuildConfig


@dataclass
class Branch:
    """A conversation as its clients know it: every token that it was fed and the pending one, with the
    ids of its last turn and of its first."""

    tokens: list[int] = field(default_factory=list)
    turn_id: str | None = None
    root: str | None = None

    def go_on(self, scheduler, oracle, engine, prompt: list[int], count: int, **request) -> Branch:
        """The branch after one more turn, whose answer is compared with that of a session that was never disturbed."""
        options = {"input_ids": tuple(prompt), "max_tokens": count, "ignore_eos": True}
        client = ask(scheduler, **options, parent_turn=self.turn_id, **request)
        fed = [*self.tokens, *prompt]
        expected = ask(oracle, **{**options, "input_ids": tuple(fed)})
        assert_same_greedy(engine, fed, client.ids, expected.ids)
        assert client.last.session_tokens == len(fed) + count - 1
        assert client.last.num_input_tokens == len(prompt)
        turn_id = client.last.turn_id
        return Branch([*fed, *client.ids], turn_id, self.root or turn_id)


@pytest.fixture(scope="module")
def wider_folder(engine_folder, tmp_path_factory) -> Path:
    """An engine of the same checkpoint with another window."""
    folder = tmp_path_factory.mktemp("wider") / "engine"
    sizes = BuildConfig(max_batch_size=2, max_num_tokens=32, max_attention_window=48, max_sink_token_length=12)
    checkpoint = open_checkpoint(engine_folder.parent / "checkpoint")
    build_cpu_engine(checkpoint, sizes, folder, lambda done, total: None)
    return folder


def test_a_session_goes_on_in_another_process(start, schedule, engine):
    """Each turn on a scheduler and an engine that have not seen the session before."""
    oracle = schedule()
    random, branch = Random(0), Branch()
    for length in (3, 40, 0, 90, 1, 7):
        scheduler = start()
        prompt = [random.randrange(256) for _ in range(length)]
        branch = branch.go_on(scheduler, oracle, engine, prompt, 9, session_key="s")
        scheduler.close()


def test_a_system_text_stays_in_sight(start, schedule, engine):
    first = ask(start(), text="Hello", system="Be brief", session_key="s", max_tokens=80, ignore_eos=True)
    second = ask(start(), text="More", session_key="s", max_tokens=8, ignore_eos=True)
    undisturbed = schedule(engine)
    ask(undisturbed, text="Hello", system="Be brief", session_key="s", max_tokens=80, ignore_eos=True)
    expected = ask(undisturbed, text="More", session_key="s", max_tokens=8, ignore_eos=True)
    assert (second.ids, second.text, second.last.session_tokens) == (
        expected.ids,
        expected.text,
        expected.last.session_tokens,
    )
    assert first.last.turn_id


@pytest.mark.quick("0-*")
@pytest.mark.parametrize("store", DATABASES, indirect=True)
@pytest.mark.parametrize("seed", range(4))
def test_random_schedules(start, schedule, engine_folder, wider_folder, tmp_path, monkeypatch, seed):
    """Turns, forks, rewinds, cancellations, failures, repeats and restarts of two servers with little memory.

    Caches come from every tier, which is cheap or dear by turns. Servers start again with one of two windows.
    """
    random, dear = Random(seed), Random(seed)
    folders = (engine_folder, wider_folder)
    engines = [load_engine(folder) for folder in folders]
    oracles = [schedule(load_engine(folder)) for folder in folders]
    idle_bytes = random.choice([0, 2 * engines[0].session_bytes, 1 << 30])
    monkeypatch.setattr(TierCosts, "reading", lambda self, nbytes: dear.choice([0.0, 1e9]))
    limits = {"max_idle_bytes": idle_bytes, "max_sessions": 3, "snapshot_dir": tmp_path / "snapshots"}
    windows = [0, random.randrange(2)]
    servers = [start(folders[window], **limits) for window in windows]
    heads: dict[str, Branch] = {}
    branches = [Branch()]
    for step in range(24):
        number, key = random.randrange(2), random.choice("abcde")
        scheduler, oracle, engine = servers[number], oracles[windows[number]], engines[windows[number]]
        head, prompt = heads.get(key), [random.randrange(256) for _ in range(random.choice([1, 5, 40]))]
        request = {"session_key": key, "request_id": f"r{step}"}
        action = random.random()
        if action < 0.1:
            windows[number] = random.randrange(2)
            servers[number] = start(folders[windows[number]], **limits)
            scheduler.close()
        elif action < 0.2:  # nothing comes of a turn that is too late
            assert refused(scheduler, **{**request, **ENDLESS}, timeout=1e-6).code == "timeout"
        elif action < 0.3:
            client = Client(scheduler, cancel_after=3, text="abc", **request, **ENDLESS).wait()
            tokens = [*(head.tokens if head else []), *b"abc", *client.ids]
            root = head.root if head else client.last.turn_id
            heads[key] = Branch(tokens, client.last.turn_id, root)
        elif action < 0.45 and head is not None:
            target = random.choice([branch for branch in branches if branch.turn_id])
            request["session_rewind"] = True
            if target.root == head.root:
                heads[key] = target.go_on(scheduler, oracle, engine, prompt, 4, **request)
            else:  # one of another conversation
                assert refused(scheduler, **request, parent_turn=target.turn_id).code == "not_found"
        elif action < 0.6:
            parent = random.choice(branches)
            branches.append(parent.go_on(scheduler, oracle, engine, prompt, 3, session_key=f"fork {step}"))
        else:
            parent = head or Branch()
            heads[key] = after = parent.go_on(scheduler, oracle, engine, prompt, random.choice([1, 6, 30]), **request)
            if random.random() < 0.3:
                count = len(after.tokens) - len(parent.tokens) - len(prompt)
                options = {"input_ids": tuple(prompt), "max_tokens": count, "ignore_eos": True}
                again = ask(random.choice(servers), **options, **request, parent_turn=parent.turn_id)
                assert (again.last.turn_id, len(again.outputs)) == (after.turn_id, 1)
                assert again.ids == [*after.tokens[len(after.tokens) - count :]]
        branches += [heads[key]] if key in heads else []


@pytest.mark.parametrize("fair_share", [0.0, 60.0])
def test_turns_that_follow_at_once(start, schedule, engine, fair_share):
    """More sessions than lanes; each sends its next turn the moment it has an answer, some are cancelled."""
    scheduler = start(fair_share=fair_share)
    conversations: dict[int, list[tuple[list[int], list[int]]]] = {key: [] for key in range(6)}

    def converse(key: int) -> None:
        random = Random(key)
        for _ in range(10):
            prompt = [random.randrange(256) for _ in range(random.choice([1, 30]))]
            cancel_after = random.choice([None, None, 2])
            client = Client(
                scheduler,
                cancel_after,
                input_ids=tuple(prompt),
                session_key=key,
                max_tokens=random.choice([1, 5]) if cancel_after is None else 100_000,
                ignore_eos=True,
            )
            conversations[key].append((prompt, client.wait().ids))

    threads = [threading.Thread(target=converse, args=(key,)) for key in conversations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scheduler.drain(60)
    oracle = schedule()
    for turns in conversations.values():
        fed: list[int] = []
        assert len(turns) == 10
        for prompt, ids in turns:
            fed += prompt
            expected = ask(oracle, input_ids=tuple(fed), max_tokens=len(ids), ignore_eos=True).ids
            assert_same_greedy(engine, fed, ids, expected)
            fed += ids


def test_an_engine_with_another_window_takes_over(start, schedule, engine_folder, wider_folder):
    branch = Branch()
    for folder in (engine_folder, wider_folder) * 2:
        oracle = schedule(load_engine(folder))
        branch = branch.go_on(start(folder), oracle, load_engine(folder), [5] * 70, 6, session_key="s")


def test_another_checkpoint_is_refused_by_name(start, tmp_path, tokenizer):
    ask(start(), text="Hello", session_key="s", max_tokens=2)
    checkpoint = write_checkpoint(tmp_path / "c", "llama-gqa", seed=1, vocab_size=260, eos_token_id=EOS)
    build_cpu_engine(open_checkpoint(checkpoint), BuildConfig(), tmp_path / "other", lambda done, total: None)
    other = start(tmp_path / "other")
    error = refused(other, session_key="s")
    assert error.code == "conflict"
    assert "the conversation is one with another checkpoint" in str(error)
    ask(other, text="Hello", session_key="t", max_tokens=2)


def test_more_sinks_than_the_engine_has_are_refused(start, tmp_path, engine_folder):
    ask(start(), text="Hello", system="Be brief", session_key="s", max_tokens=2)
    config = BuildConfig(max_batch_size=1, max_attention_window=32)
    checkpoint = engine_folder.parent / "checkpoint"
    build_cpu_engine(open_checkpoint(checkpoint), config, tmp_path / "few", lambda done, total: None)
    assert "a session asked for 8 sink tokens; this engine allows 0 to 4" in str(
        refused(start(tmp_path / "few"), session_key="s")
    )


def test_a_session_ends_in_the_store_too(start, log):
    scheduler = start()
    seen = ask(scheduler, text="Hello", session_key="s", max_tokens=2).last
    ask(scheduler, text="Hello", session_key="t", max_tokens=2)
    assert len(log.summaries()) == 2
    ask(scheduler, session_key="s", session_end=True, parent_turn=seen.turn_id)
    assert ask(scheduler, text="x", session_key="t", session_end=True, max_tokens=2).last.turn_id == ""
    assert log.summaries() == []
    assert log.turn(bytes.fromhex(seen.turn_id)) is None
    assert refused(start(), session_key="s", session_tokens=seen.session_tokens).code == "not_found"
    assert ask(scheduler, session_key="s", session_end=True).last.finish_reason == "stop"


def test_a_turn_that_is_cancelled_before_its_first_token_is_not_kept(start, log):
    scheduler = start()
    client = Client(scheduler, input_ids=(5,) * 20_000, session_key="s", max_tokens=1)
    client.turn.cancel()
    assert client.wait().last.turn_id == ""
    assert log.head("s") is None


def test_a_store_that_is_busy_delays_its_own_turns_only(start, store, log, schedule):
    """Another process holds SQLite's lock: one session waits, others that need no store do not."""
    scheduler = start(commit_timeout=60.0)
    ask(scheduler, text="Hello", session_key="s", max_tokens=3)
    blocker = sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    waiting = Client(scheduler, text="a", session_key="s", max_tokens=3, ignore_eos=True)
    wait_until(lambda: len(waiting.outputs) == 2)
    ask(scheduler, text="Hello", max_tokens=50, ignore_eos=True)
    assert len(waiting.outputs) == 2  # its last token is not out: it is not committed
    assert refused(scheduler, session_key="s").code == "busy"
    assert not scheduler.drain(0.1)
    blocker.execute("COMMIT")
    blocker.close()
    last = waiting.wait().last
    assert scheduler.drain(60)
    head = log.head("s")
    assert head is not None
    assert head.id.hex() == last.turn_id


def test_a_turn_whose_commit_is_late_is_there_once(start, store, log):
    """Its client repeats the request until it is answered, and may not know whether the first was committed."""
    scheduler = start(commit_timeout=0.3)
    request = {"text": "a", "session_key": "s", "max_tokens": 3, "ignore_eos": True, "request_id": "r"}
    before = ask(scheduler, text="Hello", session_key="s", max_tokens=3)
    blocker = sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    assert refused(scheduler, **request).code == "unknown"
    blocker.execute("COMMIT")
    blocker.close()
    codes = set()
    answer = None
    while answer is None:
        try:
            answer = ask(scheduler, **request).last
        except TrtstreamError as error:
            codes.add(error.code)
    assert codes <= {"conflict", "unknown"}
    assert answer.session_tokens == before.last.session_tokens + 1 + 1 + 2
    head = log.head("s")
    assert head is not None
    assert head.id.hex() == answer.turn_id
    assert [turn.request_id for turn in log.branch(head.id)] == ["", "r"]


def test_a_turn_that_loses_to_another_server_is_undone(start, store, log, schedule):
    first, second = start(commit_timeout=60.0), start(commit_timeout=60.0)
    options = {"session_key": "s", "max_tokens": 3, "ignore_eos": True}
    ask(first, text="Hello", **options)
    ask(second, text="a", **options)  # both have the session now
    ask(first, text="b", **options)
    blocker = sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    clients = [Client(scheduler, text="c", **options) for scheduler in (first, second)]
    wait_until(lambda: all(len(client.outputs) == 2 for client in clients))
    blocker.execute("COMMIT")
    blocker.close()
    codes = []
    for client in clients:
        try:
            codes.append(client.wait().last.finish_reason)
        except TrtstreamError as error:
            codes.append(error.code)
    assert sorted(codes) == ["conflict", "length"]
    undisturbed = schedule()
    expected = [ask(undisturbed, text=text, **options).ids for text in ("Hello", "a", "b", "c", "d", "e")]
    for scheduler, text, ids in ((first, "d", expected[4]), (second, "e", expected[5])):
        assert ask(scheduler, text=text, **options).ids == ids
    head = log.head("s")
    assert head is not None
    assert [turn.prompt for turn in log.branch(head.id)] == ["Hello", "a", "b", "c", "d", "e"]


def test_closing_waits_for_commits(start, log):
    scheduler = start()
    outputs = []
    client = Client(scheduler, text="Hello", session_key="s", max_tokens=4, ignore_eos=True)
    threading.Thread(target=lambda: outputs.append(client.wait())).start()
    wait_until(lambda: len(client.outputs) >= 3)
    scheduler.close()
    if isinstance(client.outputs[-1], Exception):
        assert log.head("s") is None
    else:
        assert log.head("s") is not None


KILLED = """
import sys, trtstream
engine, store, known = sys.argv[1:]
with trtstream.load(engine, session_store=store) as llm:
    chat = llm.session("s")
    print("ready", flush=True)
    while True:
        for output in chat.stream("abc", max_tokens=5, ignore_eos=True):
            last = output
        print(last.turn_id, last.session_tokens, flush=True)
"""


@pytest.mark.process
def test_a_killed_process_loses_no_turn_that_it_answered(engine_folder, store, log, schedule, engine):
    random = Random(0)
    answered: list[str] = []
    for _ in range(2):
        command = [sys.executable, "-c", KILLED, str(engine_folder), store, ""]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            lines = [process.stdout.readline() for _ in range(random.randrange(2, 9))]
            process.kill()
            lines += process.stdout.readlines()
        answered += [line.split()[0] for line in lines if line.endswith("\n")]
    head = log.head("s")
    assert head is not None
    branch = [turn.id.hex() for turn in log.branch(head.id)]
    assert [turn_id for turn_id in branch if turn_id in set(answered)] == answered
    assert len(branch) <= len(answered) + 2
    with trtstream.load(engine_folder, session_store=store) as llm:
        chat = llm.session("s")
        again = [token for output in chat.stream("abc", max_tokens=5, ignore_eos=True) for token in output.token_ids]
    undisturbed = schedule()
    for _ in range(len(branch) + 1):
        expected = ask(undisturbed, text="abc", session_key="s", max_tokens=5, ignore_eos=True).ids
    assert again == expected


def test_a_store_that_is_gone_is_named_in_the_log_and_not_to_clients(start, store, caplog):
    scheduler = start(commit_timeout=60.0)
    ask(scheduler, text="Hello", session_key="s", max_tokens=2)
    with sqlite3.connect(store.removeprefix("sqlite:///")) as connection:
        connection.execute("ALTER TABLE turns RENAME TO elsewhere")
    connection.close()
    error = refused(scheduler, session_key="s")
    assert (str(error), error.code) == ("the session store does not answer; try again later", "unavailable")
    assert "sessions.db" in caplog.text
    ask(scheduler, text="Hello", max_tokens=2)


def test_others_are_read_while_long_indexes_are_made(log: TurnLog) -> None:
    journal = Journal(log, bytes(32), commit_timeout=5.0)
    go_on, read = threading.Event(), threading.Event()

    def decode(spans: Sequence[Sequence[int]]) -> list[str]:
        go_on.wait()
        return [str(ids) for ids in spans]

    vocabulary = Vocabulary(Cutter(["a"], ()), decode)
    turn = turn_after(None, Random(0), tokens=[0] * 20, pending=0)
    assert log.commit([commit_after("s", None, turn)]) == [None]
    question = Question("a", turn.position, 0, 8, 8)
    for key in range(THREADS - 1):
        journal.read(partial(journal.recall, key, turn, question, vocabulary))
    journal.read(read.set)
    assert read.wait(60)
    go_on.set()
    journal.close()
