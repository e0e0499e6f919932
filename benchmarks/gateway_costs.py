"""What does the gateway add to a turn over gRPC?

One server answers the same question over gRPC and through the gateway (a streamed response), in turn, and over gRPC
once more: where that differs from itself by more than 1 %, the run does not count. Then many clients ask at once. Last,
conversations in the three ways that OpenAI's protocols have: is their last turn as fast as an early one? The first
message fills the window, so that all of these turns attend to as many tokens.
Writes JSON and prints a table:

    python -m benchmarks.gateway_costs ENGINE --json benchmarks/results/gateway_costs.json
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import write_json
from benchmarks.markdown import table
from benchmarks.paired import in_turn, row
from tests.deploy.server import serving
from trtstream.deploy.client.client import Client
from trtstream.machine import machine

Turn = Callable[[int], list[float]]
"""Takes a number of tokens, and returns when a turn of that many began and when each piece of its text came."""

TURNS = 30
TTFT_ROUNDS = 5  # times as many rounds as the others have, as its answers have two tokens
QUESTION = "Tell me a long story about a river and the towns on it."
OPENING = f"{QUESTION} " * 50  # fills a window of 512 tokens: a turn takes longer until the window is full


def over_grpc(url: str, model: str, tokens: int) -> list[float]:
    """When a turn began and when each piece of its text came, in seconds of `time.perf_counter`."""
    with Client(url, model) as client:
        client.health()  # connected
        times = [time.perf_counter()]
        for output in client.generate(text_input=QUESTION, chat=True, max_tokens=tokens, stream=True):
            if output.text:
                times.append(time.perf_counter())
    return times


def over_gateway(url: str, model: str, tokens: int) -> list[float]:
    """The same of a response that is not kept, as the turn over gRPC is not."""
    body = {"model": model, "input": QUESTION, "max_output_tokens": tokens, "store": False}
    with closing(http.client.HTTPConnection(url, timeout=600)) as connection:
        connection.connect()
        return stream(connection, "/v1/responses", body)[0]


def stream(
    connection: http.client.HTTPConnection, path: str, body: dict[str, Any]
) -> tuple[list[float], list[dict[str, Any]]]:
    """When a streamed answer was asked for and each piece of its text came, and all of its events."""
    times, events = [time.perf_counter()], []
    connection.request("POST", path, json.dumps({**body, "stream": True}))
    response = connection.getresponse()
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(response.read().decode())
    for line in response:
        now = time.perf_counter()
        if line.startswith(b"data: {"):
            events.append(json.loads(line[len(b"data: ") :]))
            if piece(events[-1]):
                times.append(now)
    if len(times) == 1:
        raise RuntimeError(f"{path} has answered without a text: {events}")
    return times, events


def ask(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> tuple[float, list[dict[str, Any]]]:
    """Seconds to the first text of a stream, and the events of all of it."""
    times, events = stream(connection, path, body)
    return times[1] - times[0], events


def piece(event: dict[str, Any]) -> str:
    """The new text in an event of either protocol."""
    if event.get("type") == "response.output_text.delta":
        return str(event["delta"])
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))


def inputs(common: dict[str, Any]) -> list[str]:
    """What is said in each turn of a conversation."""
    question = common["input"]
    return [OPENING + question, *[question] * (TURNS - 1)]


def by_responses(connection: http.client.HTTPConnection, common: dict[str, Any], tokens: int) -> list[float]:
    """Seconds to the first text of each turn of a conversation, each turn a continued response."""
    seconds: list[float] = []
    more: dict[str, Any] = {}
    for text in inputs(common):
        body = {**common, **more, "input": text, "max_output_tokens": tokens}
        first, events = ask(connection, "/v1/responses", body)
        seconds.append(first)
        more = {"previous_response_id": events[-1]["response"]["id"]}
    return seconds


def by_conversation(connection: http.client.HTTPConnection, common: dict[str, Any], tokens: int) -> list[float]:
    """The same, each turn added to a conversation."""
    connection.request("POST", "/v1/conversations", "{}")
    conversation = json.loads(connection.getresponse().read())["id"]
    body = {**common, "conversation": conversation, "max_output_tokens": tokens}
    return [ask(connection, "/v1/responses", {**body, "input": text})[0] for text in inputs(common)]


def by_history(connection: http.client.HTTPConnection, common: dict[str, Any], tokens: int) -> list[float]:
    """The same with chat completions, which are sent the whole history."""
    seconds: list[float] = []
    messages: list[dict[str, str]] = []
    for text in inputs(common):
        messages.append({"role": "user", "content": text})
        body = {"model": common["model"], "messages": messages, "max_completion_tokens": tokens}
        first, events = ask(connection, "/v1/chat/completions", body)
        seconds.append(first)
        messages.append({"role": "assistant", "content": "".join(map(piece, events))})
    return seconds


def long_conversations(url: str, model: str, tokens: int, conversations: int) -> list[dict[str, Any]]:
    """The third turn beside the fourth and the last one of ``conversations`` in each of the three ways."""
    rows = []
    for what, way in (("responses", by_responses), ("conversation", by_conversation), ("history", by_history)):
        cases: dict[str, list[float]] = {"turn 3": [], "turn 4": [], f"turn {TURNS}": []}
        for number in range(conversations):
            common = {"model": model, "input": f"{QUESTION} Make it story number {number}, in the way of {what}."}
            with closing(http.client.HTTPConnection(url, timeout=600)) as connection:
                seconds = way(connection, common, tokens)
            for case, at in zip(cases.values(), (2, 3, TURNS - 1), strict=True):
                case.append(seconds[at])
        rows.append(row(f"TTFT by {what}", cases, "at most 1.1 times"))
    return rows


def measure(grpc: Turn, gateway: Turn, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Time to the first text and between texts, of one client."""

    def ttft(turn: Turn) -> float:
        start, first, *_ = turn(2)
        return first - start

    def itl(turn: Turn) -> float:
        _, first, *others = turn(tokens)
        return (others[-1] - first) / len(others)

    def compared(figure: Callable[[Turn], float], rounds: int) -> dict[str, list[float]]:
        over = partial(figure, grpc)
        return in_turn(rounds, {"gRPC": over, "again": over, "gateway": partial(figure, gateway)})

    grpc(tokens), gateway(tokens)
    return [
        row("TTFT", compared(ttft, TTFT_ROUNDS * rounds), "at most 3 ms more"),
        row("ITL", compared(itl, rounds), "at most 1 ms more"),
    ]


def crowded(
    grpc: Callable[[], list[float]], gateway: Callable[[], list[float]], clients: int, rounds: int
) -> dict[str, Any]:
    """Seconds until all of ``clients`` that ask at once have their answers."""

    def together(turn: Callable[[], list[float]]) -> float:
        with ThreadPoolExecutor(clients) as pool:
            started = time.perf_counter()
            for answer in [pool.submit(turn) for _ in range(clients)]:
                answer.result()
            return time.perf_counter() - started

    cases = {"gRPC": lambda: together(grpc), "again": lambda: together(grpc), "gateway": lambda: together(gateway)}
    return row(f"{clients} answers at once", in_turn(rounds, cases), "at most 1.1 times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--conversations", type=int, default=15, help="of 30 turns, in each of three ways")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        store = f"sqlite:///{folder}/sessions.db"
        options = ("--openai-port", "0", "--session-store", store)
        server = running.enter_context(serving(arguments.engine, Path(folder) / "log", *options))
        (model,), gateway_url = server.models, server.openai_url
        assert gateway_url is not None
        grpc, gateway = partial(over_grpc, server.grpc_url, model), partial(over_gateway, gateway_url, model)
        tokens = arguments.tokens
        rows = measure(grpc, gateway, tokens, arguments.rounds)
        together = max(arguments.rounds // 4, 1)
        rows.append(crowded(partial(grpc, tokens), partial(gateway, tokens), arguments.clients, together))
        rows += long_conversations(gateway_url, model, tokens // 4, arguments.conversations)
    print(table(rows))
    result = {"machine": machine(), "load": load_before, "engine": arguments.engine.name, "rows": rows}
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
