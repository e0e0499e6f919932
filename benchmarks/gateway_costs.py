"""What does the gateway add to a turn over gRPC?

One server answers the same question over gRPC and through the gateway (a streamed response), in turn, and over gRPC
once more: where that differs from itself by more than 1 %, the run does not count. Then many clients ask at once.
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
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import write_json
from benchmarks.markdown import table
from benchmarks.paired import in_turn, row
from tests.deploy.server import serving
from trtstream.deploy.client.client import Client
from trtstream.machine import machine

QUESTION = "Tell me a long story about a river and the towns on it."


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
    body = {"model": model, "input": QUESTION, "max_output_tokens": tokens, "stream": True, "store": False}
    connection = http.client.HTTPConnection(url, timeout=600)
    connection.connect()
    times = [time.perf_counter()]
    connection.request("POST", "/v1/responses", json.dumps(body))
    response = connection.getresponse()
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(response.read().decode())
    for line in response:
        if line == b"event: response.output_text.delta\n":
            times.append(time.perf_counter())
    connection.close()
    return times


def measure(grpc: Callable[[], list[float]], gateway: Callable[[], list[float]], rounds: int) -> list[dict[str, Any]]:
    """Time to the first text and between texts, of one client."""

    def ttft(turn: Callable[[], list[float]]) -> float:
        start, first, *_ = turn()
        return first - start

    def itl(turn: Callable[[], list[float]]) -> float:
        _, first, *others = turn()
        return (others[-1] - first) / len(others)

    grpc(), gateway()
    rows = []
    for what, figure, bound in (("TTFT", ttft, "at most 3 ms more"), ("ITL", itl, "at most 1 ms more")):
        over = partial(figure, grpc)
        seconds = in_turn(rounds, {"gRPC": over, "again": over, "gateway": partial(figure, gateway)})
        rows.append(row(what, seconds, bound))
    return rows


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
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    load_before = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(arguments.engine, Path(folder) / "log", "--openai-port", "0") as server,
    ):
        (model,), gateway_url = server.models, server.openai_url
        assert gateway_url is not None
        grpc = partial(over_grpc, server.grpc_url, model, arguments.tokens)
        gateway = partial(over_gateway, gateway_url, model, arguments.tokens)
        rows = measure(grpc, gateway, arguments.rounds)
        rows.append(crowded(grpc, gateway, arguments.clients, max(arguments.rounds // 5, 1)))
    print(table(rows))
    result = {"machine": machine(), "load": load_before, "engine": arguments.engine.name, "rows": rows}
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
