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
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import write_json
from benchmarks.markdown import table
from benchmarks.session_costs import in_turn, row
from trtstream.deploy.client.client import Client
from trtstream.machine import machine

QUESTION = "Tell me a long story about a river and the towns on it."
READY = re.compile(r"ready: grpc=(\S+) .*openai=(\S+) models=(\S+)")


@contextmanager
def served(engine: Path) -> Iterator[tuple[str, str, str]]:
    """The addresses of a server's gRPC service and of its gateway, and its model's name."""
    ports = [option for kind in ("grpc", "http", "metrics", "openai") for option in (f"--{kind}-port", "0")]
    command = [sys.executable, "-m", "trtstream", "serve", str(engine), *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serve:
        try:
            assert serve.stdout is not None
            ready = READY.match(serve.stdout.readline())
            if ready is None:
                raise RuntimeError("serve did not start; its error is above")
            yield ready[1], ready[2], ready[3]
        finally:
            serve.terminate()


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
    with served(arguments.engine) as (grpc_url, gateway_url, model):

        def grpc() -> list[float]:
            return over_grpc(grpc_url, model, arguments.tokens)

        def gateway() -> list[float]:
            return over_gateway(gateway_url, model, arguments.tokens)

        rows = measure(grpc, gateway, arguments.rounds)
        rows.append(crowded(grpc, gateway, arguments.clients, max(arguments.rounds // 5, 1)))
    print(table(rows))
    result = {"machine": machine(), "load": load_before, "engine": arguments.engine.name, "rows": rows}
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
