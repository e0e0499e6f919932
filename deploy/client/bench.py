"""``trtstream bench``: load a served model with a number of clients at a time; report latency and throughput."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from trtstream.deploy.client.connect import connect, service_options
from trtstream.deploy.client.metrics import Distribution, Summary, TurnTiming, summarize
from trtstream.deploy.client.triton import TritonClient, new_session
from trtstream.errors import TrtstreamError
from trtstream.output_file import OutputFile, PlotFile
from trtstream.progress import Progress, progress_bar
from trtstream.tables import print_table

CONCURRENCY = (1, 4, 8)


@dataclass(frozen=True)
class Load:
    """A level's load: ``requests`` sessions of ``turns`` turns, ``input_tokens`` in and ``output_tokens`` out each.

    Prompts are random token ids below ``vocab_size``: the same in every run, another one in every turn.
    """

    url: str
    model_name: str
    vocab_size: int
    requests: int
    input_tokens: int
    output_tokens: int
    turns: int

    def prompt(self, request: int, turn: int) -> list[int]:
        rng = random.Random(f"{request} {turn}")
        return [rng.randrange(self.vocab_size) for _ in range(self.input_tokens)]


class Level:
    """One concurrency: that many clients, each sending its next request as soon as its last one is answered."""

    def __init__(self, load: Load, concurrency: int, tls_ca: Path | None) -> None:
        self.load = load
        self.concurrency = concurrency
        self.timings: list[TurnTiming] = []
        self._requests = iter(range(load.requests))
        self._clients = [connect(load.url, load.model_name, tls_ca) for _ in range(concurrency)]
        self._stopping = threading.Event()

    def run(self, progress: Progress) -> None:
        """Measure the level into ``timings``. An interrupt cancels the running turns and is raised."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            running = {pool.submit(self._work, client) for client in self._clients}
            try:
                while running:
                    done, running = wait(running, timeout=0.2)
                    progress(len(self.timings), self.load.requests * self.load.turns)
                    for worker in done:
                        worker.result()
            finally:
                self._stopping.set()
                for client in self._clients:
                    client.cancel()

    def _work(self, client: TritonClient) -> None:
        with client:
            for request in self._requests:
                with new_session(client, "bench") if self.load.turns > 1 else nullcontext() as session_id:
                    self._run_turns(client, request, session_id)
                if self._stopping.is_set():
                    return

    def _run_turns(self, client: TritonClient, request: int, session_id: str | None) -> None:
        for turn in range(1, self.load.turns + 1):
            timing = self._time_turn(client, request, turn, session_id)
            if timing is None:
                return
            self.timings.append(timing)
            if timing.error is not None:
                return

    def _time_turn(self, client: TritonClient, request: int, turn: int, session_id: str | None) -> TurnTiming | None:
        """Run one turn; None if the bench was stopped before its end."""
        wanted = self.load.output_tokens
        inputs = {
            "input_ids": self.load.prompt(request, turn),
            "max_tokens": wanted,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "session_id": session_id,
        }
        sent = time.perf_counter()
        try:
            arrivals = [(response.received_at, len(response.token_ids)) for response in client.generate(**inputs)]
        except TrtstreamError as error:
            return None if self._stopping.is_set() else TurnTiming(turn, sent, error=str(error))
        if self._stopping.is_set():
            return None
        times = [received_at for received_at, tokens in arrivals if tokens]
        found = sum(tokens for _, tokens in arrivals)
        if found != wanted:
            return TurnTiming(turn, sent, error=f"expected {wanted} output tokens, found {found}")
        return TurnTiming(turn, sent, first_token=times[0], last_token=times[-1], output_tokens=found)


def parse_concurrency(_context: click.Context, _option: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    levels = [int(part) if part.strip().isdecimal() else 0 for part in value.split(",")]
    if min(levels) < 1:
        raise click.BadParameter(f"{value!r} is not a list of positive numbers such as 1,4,8")
    return levels


@click.command()
@service_options
@click.option(
    "--concurrency",
    callback=parse_concurrency,
    help="Clients at a time.  [default: 1,4,8; those that --requests keeps busy]",
)
@click.option("--requests", default=16, show_default=True, type=click.IntRange(1), help="Requests at each concurrency.")
@click.option("--input-tokens", default=128, show_default=True, type=click.IntRange(1), help="Tokens in each prompt.")
@click.option("--output-tokens", default=64, show_default=True, type=click.IntRange(1), help="Tokens in each answer.")
@click.option("--turns", default=1, show_default=True, type=click.IntRange(1), help="Turns: each request is a session.")
@click.option("--json", "json_file", type=OutputFile(), help="Write the figures to this file.")
@click.option("--plot", "plot_file", type=PlotFile(), help="Draw the figures to this PNG file.")
def bench(
    url: str,
    model_name: str,
    tls_ca: Path | None,
    concurrency: list[int] | None,
    requests: int,
    input_tokens: int,
    output_tokens: int,
    turns: int,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure a served model: TTFT, ITL, request latency and tokens per second; exit 1 if any request fails.

    A closed loop: every client sends its next request when its last one is answered. Answers have a fixed length.
    """
    if concurrency is None:
        concurrency = [level for level in CONCURRENCY if level <= requests]
    elif requests < max(concurrency):
        raise click.UsageError(f"--requests {requests} cannot keep {max(concurrency)} clients busy; ask for more")
    with connect(url, model_name, tls_ca) as client:
        model, model_name = client.model(), client.model_name
        for note in client.load_notes(turns):
            click.echo(note, err=True)
        load = Load(url, model_name, model.parameter("vocab_size"), requests, input_tokens, output_tokens, turns)
        client.answer(input_ids=load.prompt(-1, 1), max_tokens=2, ignore_eos=True)  # not counted: warms the server up

    summaries: list[Summary] = []
    errors: Counter[str] = Counter()
    interrupted = False
    for clients in concurrency:
        level = Level(load, clients, tls_ca)
        try:
            with progress_bar(f"concurrency {clients}") as progress:
                level.run(progress)
        except KeyboardInterrupt:
            interrupted = True
        summaries.append(summarize(clients, level.timings))
        errors.update(timing.error for timing in level.timings if timing.error is not None)
        if interrupted:
            break

    settings = {**asdict(load), "model_parameters": model.parameters}
    if json_file is not None:
        report = {"interrupted": interrupted, "settings": settings, "levels": [asdict(s) for s in summaries]}
        json_file.write_text(json.dumps({**report, "errors": errors}, indent=2) + "\n")
    if plot_file is not None:
        from trtstream.deploy.client.bench_plot import save_plot

        save_plot(plot_file, summaries, f"{model_name}: {input_tokens} tokens in, {output_tokens} out")
    print_summaries(summaries)
    for message, count in errors.items():
        click.echo(f"{count} failed: {message}", err=True)
    if interrupted:
        click.echo("interrupted: these are the turns that were done", err=True)
    sys.exit(1 if errors or interrupted else 0)


def print_summaries(summaries: Sequence[Summary]) -> None:
    rows: list[tuple[str, ...]] = []

    def add(concurrency: str, name: str, values: Distribution | None) -> None:
        cells = [f"{v:.1f}" for v in (values.mean, values.p50, values.p90, values.p99)] if values else ["-"] * 4
        rows.append((concurrency, name, *cells))

    for summary in summaries:
        add(str(summary.concurrency), "TTFT, ms", summary.time_to_first_token_ms)
        by_turn = summary.time_to_first_token_ms_by_turn
        if len(by_turn) > 1:
            add("", "  of turn 1", by_turn[0])
            add("", f"  of turn {len(by_turn)}", by_turn[-1])
        add("", "ITL, ms", summary.inter_token_latency_ms)
        add("", "request latency, ms", summary.request_latency_ms)
        rows.append(("", "output tokens/s", f"{summary.output_token_throughput:.1f}"))
        rows.append(("", "requests/s", f"{summary.request_throughput:.2f}"))
        rows.append(("", "requests, failed", str(summary.requests), str(summary.errors)))
        rows.append(())
    print_table(("concurrency", "", "mean", "p50", "p90", "p99"), rows[:-1], left=2)
