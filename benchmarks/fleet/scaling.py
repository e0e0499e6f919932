"""What routing costs, how it spreads sessions, and what servers add, where each waits for a device of its own.

    python -m benchmarks.fleet.scaling --json benchmarks/results/fleet_scaling.json

1, 2 and 3 real servers of a tiny model, each of whose steps waits for a simulated device, have the same sessions over
Envoy and, in turn, directly: each session at the server that Envoy has for it. One client then asks one server either
way. Where Envoy sends 1,000 sessions, and which of them move when a server joins or leaves, is asked of servers that
answer with their names. Exits with 1 if a turn fails.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import write_json
from benchmarks.conversations import build_tiny_engine
from benchmarks.crash.kills import LANES, life
from benchmarks.markdown import table
from benchmarks.paired import in_turn, row
from tests.deploy.envoy import Envoy
from tests.deploy.named_servers import named_server, places
from tests.deploy.proxy import Proxy
from tests.deploy.server import Server
from trtstream import failpoint
from trtstream.deploy.client.client import Client
from trtstream.errors import TrtstreamError
from trtstream.machine import machine

SERVERS = 3
SESSIONS = 24
NAMED_SESSIONS = [f"session {number}" for number in range(1000)]
STEP_SECONDS = 0.05
TOKENS = 8  # of an answer
ROUNDS = 2
ALONE_ROUNDS = 30
PROMPT = [1, 2, 3]

Turn = dict[str, float]
"""Seconds until the first token and until the end."""


def say(client: Client, session: str, tokens: int = TOKENS) -> Turn:
    """One turn."""
    began, first = time.perf_counter(), 0.0
    inputs: dict[str, Any] = {"input_ids": PROMPT, "session_id": session, "max_tokens": tokens, "ignore_eos": True}
    for _ in client.generate(**inputs, stream=True):
        first = first or time.perf_counter()
    return {"ttft": first - began, "turn": time.perf_counter() - began}


def placed(envoy: Proxy, sessions: Sequence[str]) -> dict[str, int]:
    """The port of the server to which Envoy sends each session, once all have had their first turn."""

    def turns() -> dict[int, int]:
        return {port: host["turns"] for port, host in envoy.hosts().items()}

    found = {}
    with Client(envoy.url) as client:
        for session in sessions:
            before = turns()
            say(client, session, tokens=1)
            (found[session],) = (port for port, count in turns().items() if count > before[port])
    return found


def crowd(urls: dict[str, str], seconds: float) -> list[Turn]:
    """The turns that end within ``seconds``. A session, whose server is at its URL, says one after the other."""

    def converse(session: str, url: str) -> list[Turn]:
        with Client(url) as client:
            turns = []
            while time.perf_counter() < end:
                turns.append(say(client, session))
            return turns[:-1]

    end = time.perf_counter() + seconds
    with ThreadPoolExecutor(len(urls)) as pool:
        return [turn for turns in pool.map(converse, urls, urls.values()) for turn in turns]


def throughput(folder: Path, servers: list[Server], seconds: float) -> list[dict[str, Any]]:
    """A row for each number of servers and way."""
    rows: list[dict[str, Any]] = []
    for count in range(1, len(servers) + 1):
        with Envoy(folder, [server.ports for server in servers[:count]]) as envoy:
            envoy.wait_for(count)
            sessions = [f"{count} servers, session {number}" for number in range(SESSIONS)]
            homes = placed(envoy, sessions)
            ways = {
                "direct": {session: f"127.0.0.1:{port}" for session, port in homes.items()},
                "Envoy": dict.fromkeys(sessions, envoy.url),
            }
            turns: dict[str, list[Turn]] = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, urls in ways.items():
                    turns[way] += crowd(urls, seconds)
        spread = sorted(Counter(homes.values()).values(), reverse=True)
        for way, said in turns.items():
            a_second = len(said) / (ROUNDS * seconds)
            rows.append(
                {
                    "servers": count,
                    "way": way,
                    "sessions by server": ", ".join(map(str, spread)),
                    "turns/s": a_second,
                    "times one server's": a_second / next((r["turns/s"] for r in rows if r["way"] == way), a_second),
                    "TTFT p50 (ms)": 1e3 * statistics.median(turn["ttft"] for turn in said),
                    "turn p50 (ms)": 1e3 * statistics.median(turn["turn"] for turn in said),
                }
            )
    return rows


def alone(folder: Path, server: Server, rounds: int) -> list[dict[str, Any]]:
    """What Envoy adds to the turns of one client."""
    with Envoy(folder, [server.ports]) as envoy, Client(server.grpc_url) as direct, Client(envoy.url) as routed:
        envoy.wait_for(1)
        rows = []
        for what, tokens in (("a turn of 1 token", 1), (f"a turn of {TOKENS} tokens", TOKENS)):

            def seconds(client: Client, tokens: int = tokens) -> float:
                return say(client, "alone", tokens)["turn"]

            seconds(direct), seconds(routed)
            over: Callable[[], float] = partial(seconds, direct)
            cases: dict[str, Callable[[], float]] = {"direct": over, "again": over, "Envoy": partial(seconds, routed)}
            rows.append(row(what, in_turn(rounds, cases), "none"))
    return rows


def moves(folder: Path) -> list[dict[str, Any]]:
    """Where sessions are with 1 to 4 servers, and how many move when one joins; as many when it leaves again."""
    with ExitStack() as stack:
        servers = [stack.enter_context(named_server(number)) for number in range(4)]
        for server in servers[1:]:
            server.is_ready = False
        envoy = stack.enter_context(Envoy(folder, [server.ports for server in servers]))
        states: list[dict[str, int]] = []
        for count, server in enumerate(servers, 1):
            server.is_ready = True
            envoy.wait_for(count)
            states.append(places(envoy.url, NAMED_SESSIONS))
        rows: list[dict[str, Any]] = []
        for count, now in enumerate(states, 1):
            spread = sorted(Counter(now.values()).values(), reverse=True)
            result: dict[str, Any] = {"servers": count, "sessions by server": ", ".join(map(str, spread))}
            if count > 1:
                before = states[count - 2]
                moved = [one for one in NAMED_SESSIONS if now[one] != before[one]]
                result["moved when it joined (%)"] = 100 * len(moved) / len(now)
                result["1/N (%)"] = 100 / count
                result["of them, to another than it"] = sum(now[one] != count - 1 for one in moved)
            rows.append(result)
        for count in (3, 2, 1):
            servers[count].is_ready = False
            envoy.wait_for(count)
            after = places(envoy.url, NAMED_SESSIONS)
            rows[count]["the same as before once it left"] = after == states[count - 1]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each round and way")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="trtstream-scaling-") as name, ExitStack() as stack:
        folder = Path(name)
        moved = moves(folder)
        print(table(moved), end="\n\n", flush=True)
        engine = build_tiny_engine(folder / "engine", LANES)
        store, step = "", {failpoint.STEP_VARIABLE: str(STEP_SECONDS)}
        lives = [life(engine, folder / f"log{number}", store, **step) for number in range(SERVERS)]
        with ThreadPoolExecutor(SERVERS) as pool:
            servers = list(pool.map(stack.enter_context, lives))
        try:
            crowds = throughput(folder, servers, arguments.seconds)
            print(table(crowds), end="\n\n", flush=True)
            costs = alone(folder, servers[0], ALONE_ROUNDS)
        except TrtstreamError as error:
            sys.exit(f"FAULT: {error}")
        print(table(costs))
    values = {"machine": machine(), "load": load, "step_seconds": STEP_SECONDS, "lanes": LANES}
    write_json(arguments.json, {**values, "moves": moved, "throughput": crowds, "alone": costs})


if __name__ == "__main__":
    main()
