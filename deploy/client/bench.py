"""``trtstream bench``: load a served model with a number of clients at a time; report latency and throughput."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from trtstream.deploy.client.bench_calls import (
    Ask,
    Caller,
    Load,
    errors_of,
    new_caller,
    openai_client,
    speaks_openai,
)
from trtstream.deploy.client.connect import connect, service_options
from trtstream.deploy.client.metrics import Distribution, Summary, TurnTiming, summarize
from trtstream.errors import TrtstreamError
from trtstream.output_file import OutputFile, PlotFile
from trtstream.progress import Progress, progress_bar
from trtstream.tables import print_table

CONCURRENCY = (1, 4, 8)


class Level:
    """One concurrency: that many clients, each sending its next request as soon as its last one is answered."""

    def __init__(self, load: Load, concurrency: int, tls_ca: Path | None) -> None:
        self.load = load
        self.concurrency = concurrency
        self.timings: list[TurnTiming] = []
        self._requests = iter(range(load.requests))
        self._callers = [new_caller(load, tls_ca) for _ in range(concurrency)]
        self._stopping = threading.Event()

    def run(self, progress: Progress) -> None:
        """Measure the level into ``timings``. An interrupt cancels the running turns and is raised."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            running = {pool.submit(self._work, caller) for caller in self._callers}
            try:
                while running:
                    done, running = wait(running, timeout=0.2)
                    progress(len(self.timings), self.load.requests * self.load.turns)
                    for worker in done:
                        worker.result()
            finally:
                self._stopping.set()
                for caller in self._callers:
                    caller.cancel()

    def _work(self, caller: Caller) -> None:
        with caller:
            for request in self._requests:
                with caller.session() as ask:
                    self._run_turns(ask, request)
                if self._stopping.is_set():
                    return

    def _run_turns(self, ask: Ask, request: int) -> None:
        for turn in range(1, self.load.turns + 1):
            sent, error = time.perf_counter(), None
            try:
                answer = ask(request, turn)
            except TrtstreamError as failure:
                error = str(failure)
            if self._stopping.is_set():
                return
            if error is not None:
                self.timings.append(TurnTiming(turn, sent, error=error))
                return
            self.timings.append(TurnTiming(turn, sent, answer.first_token, answer.last_token, answer.output_tokens))


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

    A closed loop: every client sends its next request when its last one is answered. Prompts are random token ids, and
    answers have a fixed length. With --url http://HOST:PORT the turns go to a gateway, as streamed OpenAI responses:
    there a prompt has that many words, and an answer may end earlier. Its API key is OPENAI_API_KEY.
    """
    if concurrency is None:
        concurrency = [level for level in CONCURRENCY if level <= requests]
    elif requests < max(concurrency):
        raise click.UsageError(f"--requests {requests} cannot keep {max(concurrency)} clients busy; ask for more")
    model_name, parameters, vocab_size = _look_at(url, model_name, tls_ca, turns)
    load = Load(url, model_name, vocab_size, requests, input_tokens, output_tokens, turns)
    with new_caller(replace(load, output_tokens=2, turns=1), tls_ca) as caller, caller.session() as ask:
        ask(-1, 1)  # not counted: warms the server up

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

    settings = {**asdict(load), "model_parameters": parameters}
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


def _look_at(url: str, model_name: str, tls_ca: Path | None, turns: int) -> tuple[str, dict[str, Any], int | None]:
    """(The model's name, what its service says of it, and the size of its vocabulary for prompts of ids)."""
    if speaks_openai(url):
        with openai_client(url, tls_ca) as gateway, errors_of(url):
            return model_name, gateway.models.retrieve(model_name).to_dict(), None
    with connect(url, model_name, tls_ca) as client:
        model = client.model()
        for note in client.load_notes(turns):
            click.echo(note, err=True)
        return client.model_name, model.parameters, model.parameter("vocab_size")


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
