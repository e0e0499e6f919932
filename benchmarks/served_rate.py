"""How much of an engine's own rate does a served model deliver?

The engine itself and a server of it decode in turn: one session and several, all past their windows. The clients are
threads of a process on the same machine, whose share of a core the table has. Writes JSON and prints a table:

    python -m benchmarks.served_rate ENGINE --json benchmarks/results/served_rate.json
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from operator import truediv
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks import write_json
from benchmarks.markdown import table
from tests.deploy.server import serving
from trtstream.deploy.client.client import Client
from trtstream.engine_dir import read_engine
from trtstream.machine import machine
from trtstream.runtime.loading import load_engine
from trtstream.runtime.streaming_engine import StreamingEngine

SESSIONS = (1, 8)
WARM_UP = 5  # steps of the engine that do not count


def arrivals(client: Client, session_id: str, tokens: int) -> list[float]:
    """When each token of a streamed answer came, in seconds of `time.perf_counter`."""
    outputs = client.generate(session_id=session_id, input_ids=[7], max_tokens=tokens, ignore_eos=True, stream=True)
    return [output.received_at for output in outputs for _ in output.token_ids]


def served(url: str, model: str, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[float, float]:
    """Tokens per second while sessions with these prompts all stream, and this process's share of a core then."""
    with ThreadPoolExecutor(len(prompts)) as pool, ExitStack() as stack:
        clients = [stack.enter_context(Client(url, model)) for _ in prompts]
        names = [uuid4().hex for _ in prompts]

        def fill(client: Client, name: str, prompt: Sequence[int]) -> None:
            list(client.generate(session_id=name, input_ids=prompt, max_tokens=1, ignore_eos=True))

        list(pool.map(fill, clients, names, prompts))
        before = time.process_time()
        times = list(pool.map(partial(arrivals, tokens=tokens), clients, names))
        seconds = time.process_time() - before
    first, last = max(each[0] for each in times), min(each[-1] for each in times)
    rate = sum(first < moment <= last for each in times for moment in each) / (last - first)
    return rate, rate * seconds / sum(map(len, times))


def own(engine: StreamingEngine, sessions: int, steps: int) -> float:
    """Tokens per second of the engine alone, whose sessions are past their windows."""
    lanes = range(sessions)
    for _ in range(WARM_UP):
        engine.decode(lanes, [7] * sessions)
    began = time.perf_counter()
    for _ in range(steps):
        engine.decode(lanes, [7] * sessions)
    return sessions * steps / (time.perf_counter() - began)


def measure(folder: Path, url: str, model: str, rounds: int, tokens: int) -> list[dict[str, Any]]:
    engine = load_engine(folder)
    window, vocabulary = engine.build.max_attention_window, engine.model.vocab_size
    prompts = [[(7 * i + lane) % vocabulary for i in range(2 * window)] for lane in range(max(SESSIONS))]
    for lane, prompt in enumerate(prompts):
        engine.prefill(lane, prompt)
    rows = []
    # A process of their own, as an engine's threads wait actively for a while after each step.
    with ProcessPoolExecutor(1, get_context("spawn")) as clients:
        for sessions in SESSIONS:
            alone, rates, shares = [], [], []
            for _ in range(rounds):
                alone.append(own(engine, sessions, tokens))
                rate, share = clients.submit(served, url, model, prompts[:sessions], tokens).result()
                rates.append(rate)
                shares.append(share)
            rows.append(
                {
                    "sessions": sessions,
                    "engine_tokens_per_s": statistics.median(alone),
                    "served_tokens_per_s": statistics.median(rates),
                    "served_to_engine": statistics.median(map(truediv, rates, alone)),
                    "clients_share_of_a_core": statistics.median(shares),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path, help=f"built with --max-batch-size {max(SESSIONS)} or more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200, help="of each answer")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    build, load = read_engine(arguments.engine).build_config, os.getloadavg()[0]
    if build.max_batch_size < max(SESSIONS):
        parser.error(f"the engine decodes {build.max_batch_size} sessions together, and this takes {max(SESSIONS)}")
    with tempfile.TemporaryDirectory() as folder, serving(arguments.engine, Path(folder) / "log") as server:
        rows = measure(arguments.engine, server.grpc_url, server.models[0], arguments.rounds, arguments.tokens)
    print(table(rows))
    write_json(
        arguments.json,
        {
            "machine": machine(),
            "load_before": load,
            "dtype": build.dtype,
            "quantization": build.quantization,
            "max_attention_window": build.max_attention_window,
            "rounds": arguments.rounds,
            "tokens": arguments.tokens,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
