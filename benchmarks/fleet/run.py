"""A fleet under load while its parts fail, and what came of it."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.conversations import Conversation, Undisturbed, build_tiny_engine, check_chats, check_log
from benchmarks.crash.kills import GIVE_UP_SECONDS, LANES
from benchmarks.fleet.customers import Customer, GatewayCustomer, GrpcCustomer, settle
from benchmarks.fleet.first_tokens import FirstTokens
from benchmarks.fleet.parts import PLANNED, PROXIES, STOPPED_SECONDS, Fleet, GatewayProcess, Node
from tests.sessions.postgres import Postgres

TURNS_A_SECOND = 16.0  # of all conversations together, which two cores can answer
ACTION_SECONDS = 40.0  # at most, as scripts are as long
THROUGH_THE_GATEWAY = 3  # every third conversation


def write_scripts(folder: Path, sessions: int, turns: int, seed: int) -> tuple[list[Conversation], list[Conversation]]:
    """Conversations of ``turns`` turns: those over gRPC, and those through a gateway."""
    undisturbed = Undisturbed(folder, sessions, seed, chats=True)
    conversations = []
    for lane in range(sessions):
        next_turn = undisturbed.next_turn if lane % THROUGH_THE_GATEWAY else undisturbed.next_chat_turn
        conversations.append(Conversation(f"session {lane}", [next_turn(lane) for _ in range(1 + turns)]))
    chats = conversations[::THROUGH_THE_GATEWAY]
    return [one for one in conversations if one not in chats], chats


def run_fleet(
    folder: Path, servers: int, sessions: int, actions: list[str], seed: int, proxy: str = "envoy"
) -> dict[str, Any]:
    """What came of it, for JSON. ``folder`` gets the engines and the logs."""
    random = Random(seed)
    pause = max(1.0, sessions / TURNS_A_SECOND)
    turns = round(ACTION_SECONDS * (len(actions) + servers) / pause)
    talks, chats = write_scripts(folder / "undisturbed", sessions, turns, seed)
    phases: dict[str, list[dict[str, Any]]] = {}
    faults: list[str] = []
    over = threading.Event()
    with ExitStack() as stack:
        fleet = start(folder, servers, proxy, stack)
        routes: list[tuple[type[Customer], str, list[Conversation]]] = [
            (GrpcCustomer, fleet.proxy.url, talks),
            (GatewayCustomer, fleet.gateway.url, chats),
        ]
        customers = [kind(one, url, Random(random.random()), pause) for kind, url, several in routes for one in several]
        with ThreadPoolExecutor(sessions) as pool:  # a first turn that is cut short could not be taken back
            list(pool.map(lambda customer: customer.converse(1, over), customers))
        spread = sorted((host["turns"] for host in fleet.proxy.hosts().values()), reverse=True)[:servers]
        first_tokens = stack.enter_context(closing(FirstTokens([*fleet.nodes, fleet.spare])))
        threads = [threading.Thread(target=one.converse, args=(turns, over), daemon=True) for one in customers]
        for thread in threads:
            thread.start()
        try:
            phases["rolling restart"] = [_phase("rolling restart", fleet.roll, customers)]
            for action in actions:
                result = _phase(action, partial(fleet.act, action, random), customers)
                phases.setdefault(action, []).append(result)
        except Exception as error:  # a part that does not come back
            faults.append(f"the fleet broke: {error!r}")
        over.set()
        for thread in threads:
            thread.join(GIVE_UP_SECONDS)
        if any(thread.is_alive() for thread in threads):
            faults.append("a client has neither an answer nor an error")
        faults += check_fleet(fleet, talks, chats, customers)
    for name, results in phases.items():
        faults += [fault for result in results for fault in _faults(name, result, fleet.proxy.pings)]
    return {
        "proxy": proxy,
        "servers": servers,
        "sessions": {"grpc": len(talks), "gateway": len(chats)},
        "seed": seed,
        "first_turns_by_server": spread,
        "answered": {"grpc": sum(one.said for one in talks), "gateway": sum(one.said for one in chats)},
        "phases": phases,
        "first_tokens": first_tokens.rows(),
        "faults": faults,
    }


def start(folder: Path, servers: int, proxy: str, stack: ExitStack) -> Fleet:
    """Everything but the spare server runs; ``stack`` ends it."""
    engine = build_tiny_engine(folder / "engine", LANES, chats=True)
    postgres = Postgres()
    stack.callback(postgres.remove)
    nodes = [Node(engine, folder, postgres.url, number) for number in range(servers + 1)]
    for node in nodes:
        stack.enter_context(closing(node))
    with ThreadPoolExecutor(servers) as pool:
        list(pool.map(Node.start, nodes[:servers]))
    front = stack.enter_context(PROXIES[proxy](folder, [node.ports[:2] for node in nodes]))
    front.wait_for(servers)
    gateway = GatewayProcess(folder, postgres.url, front.url)
    stack.callback(gateway.stop)
    return Fleet(nodes[:servers], nodes[servers], postgres, front, gateway)


def check_fleet(
    fleet: Fleet, talks: list[Conversation], chats: list[Conversation], customers: list[Customer]
) -> list[str]:
    """What is wrong with the answers, and with what the store has of them."""
    repeats = sum(sum(one.errors.values()) for one in customers if isinstance(one, GatewayCustomer))
    others = sum(one.said for one in chats) + repeats
    faults, unanswered = check_log(fleet.postgres.url, talks, others)
    faults += check_chats(fleet.postgres.url, chats)
    faults += [fault for conversation in (*talks, *chats) for fault in conversation.faults]
    if unanswered:
        faults.append(f"{unanswered} turns were committed and never answered")
    return faults


def _phase(name: str, work: Callable[[], None], customers: list[Customer]) -> dict[str, Any]:
    """How the customers fare until ``work`` is done, and every turn is answered that began before its end."""
    heard = [len(customer.waits) for customer in customers]
    errors = _errors(customers)
    began = time.monotonic()
    work()
    settle(customers)
    waits = [wait for customer, before in zip(customers, heard, strict=True) for wait in customer.waits[before:]]
    result = {
        "seconds": round(time.monotonic() - began, 1),
        "answered": len(waits),
        "longest_wait_s": round(max(waits, default=0.0), 2),
        "errors": dict(_errors(customers) - errors),
    }
    print(f"{name}: {result}", file=sys.stderr)
    return result


def _errors(customers: list[Customer]) -> Counter[str]:
    return sum((customer.errors for customer in customers), Counter())


def _faults(name: str, result: dict[str, Any], pings: bool) -> list[str]:
    """What is wrong with a phase."""
    faults = []
    if not result["answered"]:
        faults.append(f"{name}: no turn was answered: nothing was tried")
    if name in PLANNED and result["errors"]:
        faults.append(f"{name}: turns failed: {result['errors']}")
    if name == "stop" and pings and result["longest_wait_s"] > STOPPED_SECONDS:
        faults.append(f"stop: a turn waited {result['longest_wait_s']} s, until the stopped server went on")
    return faults
