"""One server that is killed again and again while its clients talk to it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from benchmarks.conversations import Conversation, Undisturbed, build_tiny_engine, check_log
from tests.deploy.server import Server, serve_process
from tests.deploy.serving.processes import alive, family
from trtstream import failpoint
from trtstream.deploy.serving.environment import SESSION_STORE

LANES = 4
MAX_LIFE_SECONDS = 1.5  # of a server, from its first client to a random kill
MAX_TURNS = 60  # of a conversation in one life
MAX_PASSES = {"drain": 1, "snapshot-write": 5, "snapshot-rename": 5}  # of a failpoint before it kills
OTHERS_PASSES = 25
GIVE_UP_SECONDS = 120.0
LAST_TURNS = 3
RANDOM, NONE = "random", "none"
BEHIND_COMMIT = ("after-commit", "before-response")  # there a turn is committed and not answered


@dataclass
class Result:
    """What came of one kind of kill. ``unanswered`` turns were committed, and their clients did not know it."""

    kind: str
    kills: int = 0
    answered: int = 0
    unanswered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@contextmanager
def life(engine: Path, log: Path, store: str, *options: str, **environment: str) -> Iterator[Server]:
    """A server that is ready. Whatever is left of it when the context ends is killed."""
    variables = {**environment, SESSION_STORE: store}
    with serve_process(engine, log, "--restart", "never", *options, folder=None, **variables) as process:
        processes = {process.pid}
        try:
            assert process.stdout is not None
            server = Server(process, log, process.stdout.readline())
            processes |= family(process.pid)
            yield server
        finally:
            kill_all(processes | family(process.pid))


def kill_all(processes: set[int]) -> None:
    """SIGKILL, and wait until they are gone."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    give_up = time.monotonic() + GIVE_UP_SECONDS
    while alive(processes) and time.monotonic() < give_up:
        time.sleep(0.01)


class Campaign:
    """Conversations in one store, through the lives of its server."""

    def __init__(self, folder: Path, store: str, sessions: int, seed: int) -> None:
        self._folder, self._store = folder, store
        self._engine = build_tiny_engine(folder / "engine", LANES)
        self._undisturbed = Undisturbed(folder / "undisturbed", sessions, seed)
        self._conversations = [Conversation(f"session {number}") for number in range(sessions)]
        self._random = Random(seed)

    @property
    def near_ties(self) -> int:
        """Prompts that were thrown away."""
        return self._undisturbed.near_ties

    def run(self, kinds: list[str]) -> list[Result]:
        """A life that ends in each of ``kinds``, until one leaves a fault, and a last one that nothing disturbs."""
        results = {kind: Result(kind) for kind in [*kinds, NONE]}
        for number, kind in enumerate([*kinds, NONE]):
            result = results[kind]
            self._live(kind, self._folder / f"log{number}", result)
            print(f"{kind}: {result.answered} turns answered, {len(result.faults)} faults", file=sys.stderr)
            if result.faults:
                break
        return list(results.values())

    def _live(self, kind: str, log: Path, result: Result) -> None:
        """One life of the server, and what the store has after it."""
        self._write_scripts(LAST_TURNS if kind == NONE else MAX_TURNS)
        before = sum(conversation.said for conversation in self._conversations)
        environment = {}
        if kind in failpoint.PLACES:
            passes = self._random.randint(1, MAX_PASSES.get(kind, OTHERS_PASSES))
            environment = {failpoint.VARIABLE: f"{kind}:{passes}"}
        snapshots = ("--snapshot-dir", str(self._folder / "snapshots"))
        with life(self._engine, log, self._store, *snapshots, **environment) as server:
            clients = [
                threading.Thread(target=conversation.converse, args=(server.grpc_url, Random(self._random.random())))
                for conversation in self._conversations
            ]
            for client in clients:
                client.start()
            if kind in (RANDOM, "drain"):
                time.sleep(self._random.uniform(0.0, MAX_LIFE_SECONDS))
            if kind == RANDOM:
                kill_all({server.process.pid} | family(server.process.pid))
            elif kind == "drain":
                server.process.terminate()
            for client in clients:
                client.join(GIVE_UP_SECONDS)
            if any(client.is_alive() for client in clients):
                result.faults.append(f"{kind}: a client has neither an answer nor an error")
        if kind in failpoint.PLACES and f"killed at the failpoint {kind}" not in log.read_text():
            result.faults.append(f"the failpoint {kind} was not reached")
        result.kills += kind != NONE
        result.answered += sum(conversation.said for conversation in self._conversations) - before
        faults, unanswered = check_log(self._store, self._conversations)
        result.faults += faults
        result.unanswered += unanswered
        if kind in BEHIND_COMMIT and not unanswered:
            result.faults.append(f"every client knows its last turn after {kind}: nothing was tried")
        if kind == NONE and unanswered:
            result.faults.append("the store has turns in the end that no client got")
        for conversation in self._conversations:
            result.faults += conversation.faults
            result.errors += conversation.errors
            conversation.errors.clear()
            if kind == NONE and conversation.said < len(conversation.script):
                result.faults.append(f"{conversation.key}: turn {conversation.said} was not answered in the end")

    def _write_scripts(self, turns: int) -> None:
        """Give each conversation ``turns`` turns that are left to say."""
        for lane, conversation in enumerate(self._conversations):
            if conversation.said + turns < len(conversation.script):
                del conversation.script[conversation.said + turns :]
            while len(conversation.script) < conversation.said + turns:
                conversation.script.append(self._undisturbed.next_turn(lane))
