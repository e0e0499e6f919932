"""Servers behind Envoy that share a PostgreSQL, while each part of it fails and while all servers are replaced.

    python -m benchmarks.fleet --servers 3 --sessions 48 --rounds 3 --json benchmarks/results/fleet.json

First all servers are restarted one after the other under load, and no turn may fail. Then in each round a server is
killed, one is stopped for a while (SIGSTOP), one is drained and comes back later, the database is restarted, and so is
Envoy. Clients that got no answer repeat their request with its id. In the end the store must have every turn once, and
all tokens are those of an engine that nothing disturbed. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import write_json
from benchmarks.conversations import Conversation, Undisturbed, build_tiny_engine, check_log
from benchmarks.crash.kills import GIVE_UP_SECONDS, LANES, kill_all
from benchmarks.markdown import table
from tests.deploy.envoy import Envoy
from tests.deploy.server import Server, free_ports, serve_process
from tests.deploy.serving.processes import family
from tests.sessions.postgres import Postgres
from trtstream.deploy.client.client import Client
from trtstream.deploy.serving.environment import SESSION_STORE
from trtstream.errors import TrtstreamError
from trtstream.machine import machine

ACTIONS = ("kill", "stop", "drain", "database", "envoy")
DRAIN_DELAY = 5.0  # seconds, in which Envoy notices
PATIENCE_SECONDS = 15.0  # of a client: far more than Envoy takes to find that a server is gone
STOPPED_SECONDS = 6.0
AWAY_SECONDS = 2.0
AFTER_SECONDS = 4.0
PAUSE_SECONDS = 1.0
REPEAT_SECONDS = 0.3
TURNS_AN_ACTION = 20  # at most, of a conversation
SHOWN = 20  # faults
ALLOWED = ("busy", "conflict", "draining", "unavailable", "unknown", None)


class Node:
    """A server that always has the same address."""

    def __init__(self, engine: Path, folder: Path, store: str, number: int) -> None:
        self._engine, self._folder, self._store, self._number = engine, folder, store, number
        grpc, http, metrics = free_ports(3)
        self.ports = grpc, http, metrics
        self._lives = 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        log = self._folder / f"server{self._number}.{self._lives}.log"
        self._lives += 1
        grpc, http, metrics = map(str, self.ports)
        options = ["--grpc-port", grpc, "--http-port", http, "--metrics-port", metrics]
        options += ["--restart", "never", "--drain-delay", str(DRAIN_DELAY)]
        variables = {SESSION_STORE: self._store}
        self._process = serve_process(self._engine, log, *options, folder=None, **variables)
        assert self._process.stdout is not None
        Server(self._process, log, self._process.stdout.readline())

    def processes(self) -> set[int]:
        assert self._process is not None
        return {self._process.pid} | family(self._process.pid)

    def drain(self) -> None:
        """Stop it as an operator does."""
        assert self._process is not None
        with self._process as process:
            process.terminate()
            process.wait(GIVE_UP_SECONDS)
        self._process = None

    def close(self) -> None:
        """Kill whatever runs of it."""
        if self._process is not None:
            with self._process:
                kill_all(self.processes())
            self._process = None

    def signal(self, number: signal.Signals, processes: set[int]) -> None:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)


@dataclass
class Customer:
    """A conversation whose turns go through Envoy, each until it is answered."""

    conversation: Conversation
    url: str
    random: Random
    errors: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    """Seconds from the first sending of a turn to its answer."""

    def converse(self, turns: int, over: threading.Event) -> None:
        """Say up to ``turns`` turns; none begins once it is ``over``."""
        end = min(self.conversation.said + turns, len(self.conversation.script))
        while self.conversation.said < end and not over.wait(self.random.expovariate(1 / PAUSE_SECONDS)):
            began = time.monotonic()
            self._say()
            self.waits.append(time.monotonic() - began)

    def _say(self) -> None:
        conversation, attempt = self.conversation, 0
        give_up = time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < give_up:
            request_id = f"{conversation.request_id(conversation.said)}#{attempt}"
            try:
                with Client(self.url, timeout=PATIENCE_SECONDS) as client:
                    inputs: dict[str, Any] = {**conversation.inputs(), "session_rewind": attempt > 0 or None}
                    answer = client.answer(request_id=request_id, **inputs)
            except TrtstreamError as error:
                self.errors[error.code or "gone"] += 1
                if error.code not in ALLOWED:
                    conversation.faults.append(f"{request_id} was refused: {error.code}: {error}")
                time.sleep(REPEAT_SECONDS)
                continue
            if answer.finish_reason != "cancelled":
                conversation.hear(answer)
                return
            attempt += 1  # the connection was lost, and the server cut the turn short: it is taken back
            self.errors["cancelled"] += 1
        conversation.faults.append(f"{conversation.key}: turn {conversation.said} had no answer in the end")


@dataclass
class Fleet:
    """Servers, their database, and Envoy in front of them."""

    nodes: list[Node]
    postgres: Postgres
    envoy: Envoy

    def roll(self) -> None:
        """Replace every server, one after the other."""
        for node in self.nodes:
            node.drain()
            node.start()
            self.envoy.wait_for(len(self.nodes))

    def act(self, action: str, random: Random) -> None:
        """What fails; it is well again when this returns."""
        node = random.choice(self.nodes)
        if action == "kill":
            node.close()
            node.start()
        elif action == "stop":
            processes = node.processes()
            node.signal(signal.SIGSTOP, processes)
            time.sleep(STOPPED_SECONDS)
            node.signal(signal.SIGCONT, processes)
        elif action == "drain":
            node.drain()
            time.sleep(AWAY_SECONDS)
            node.start()
        elif action == "database":
            self.postgres.stop()
            time.sleep(AWAY_SECONDS)
            self.postgres.start()
        else:
            self.envoy.stop()
            self.envoy.start()
        self.envoy.wait_for(len(self.nodes))
        time.sleep(AFTER_SECONDS)  # in which turns that had no answer get theirs


def run_fleet(folder: Path, servers: int, sessions: int, actions: list[str], seed: int) -> dict[str, Any]:
    """What came of it, for JSON. ``folder`` gets the engines and the logs."""
    random = Random(seed)
    undisturbed = Undisturbed(folder / "undisturbed", sessions, seed)
    turns = TURNS_AN_ACTION * (len(actions) + servers)
    conversations = [
        Conversation(f"session {lane}", [undisturbed.next_turn(lane) for _ in range(1 + turns)])
        for lane in range(sessions)
    ]
    engine = build_tiny_engine(folder / "engine", LANES)
    phases: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        postgres = Postgres()
        stack.callback(postgres.remove)
        nodes = [Node(engine, folder, postgres.url, number) for number in range(servers)]
        for node in nodes:
            stack.enter_context(closing(node))
        with ThreadPoolExecutor(servers) as pool:
            list(pool.map(Node.start, nodes))
        envoy = Envoy(folder, [node.ports[:2] for node in nodes])
        stack.callback(envoy.stop)
        envoy.wait_for(servers)
        fleet = Fleet(nodes, postgres, envoy)
        customers = [Customer(one, envoy.url, Random(random.random())) for one in conversations]
        over = threading.Event()
        for customer in customers:
            customer.converse(1, over)  # a first turn that is cut short could not be taken back
        spread = {port: host["turns"] for port, host in envoy.hosts().items()}
        threads = [threading.Thread(target=one.converse, args=(turns, over), daemon=True) for one in customers]
        for thread in threads:
            thread.start()
        phases["rolling restart"] = [_phase(fleet.roll, customers)]
        for action in actions:
            time.sleep(random.uniform(0.2, 1.0))
            result = _phase(partial(fleet.act, action, random), customers)
            phases.setdefault(action, []).append(result)
        over.set()
        for thread in threads:
            thread.join(GIVE_UP_SECONDS)
        faults, unanswered = check_log(postgres.url, conversations)
    faults += [fault for conversation in conversations for fault in conversation.faults]
    if unanswered or any(thread.is_alive() for thread in threads):
        faults.append(f"{unanswered} turns were committed and never answered")
    if failed := phases["rolling restart"][0]["errors"]:
        faults.append(f"turns failed while the servers were replaced: {failed}")
    return {
        "servers": servers,
        "sessions": sessions,
        "seed": seed,
        "first_turns_by_server": sorted(spread.values()),
        "answered": sum(conversation.said for conversation in conversations),
        "phases": phases,
        "faults": faults,
    }


def _phase(work: Callable[[], None], customers: list[Customer]) -> dict[str, Any]:
    """How the customers fare until ``work`` is done: turns, errors by code, and the longest wait for an answer."""
    heard = [len(customer.waits) for customer in customers]
    errors = sum((customer.errors for customer in customers), Counter[str]())
    began = time.monotonic()
    work()
    waits = [wait for customer, before in zip(customers, heard, strict=True) for wait in customer.waits[before:]]
    result = {
        "seconds": round(time.monotonic() - began, 1),
        "answered": len(waits),
        "longest_wait_s": round(max(waits, default=0.0), 2),
        "errors": dict(sum((customer.errors for customer in customers), Counter[str]()) - errors),
    }
    print(result, file=sys.stderr)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3, help="in each of which every part fails once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    actions = [*ACTIONS] * arguments.rounds
    Random(arguments.seed).shuffle(actions)
    with tempfile.TemporaryDirectory(prefix="trtstream-fleet-") as folder:
        run = run_fleet(Path(folder), arguments.servers, arguments.sessions, actions, arguments.seed)
    rows = [{"phase": name, **phase} for name, phases in run["phases"].items() for phase in phases]
    print(table(rows))
    print(f"first turns by server: {run['first_turns_by_server']}; {run['answered']} turns answered")
    for fault in run["faults"][:SHOWN]:
        print(f"FAULT: {fault}")
    write_json(arguments.json, {"machine": machine(), **run})
    sys.exit(bool(run["faults"]))


if __name__ == "__main__":
    main()
