"""``trtstream eval``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtstream.errors import TrtstreamError
from trtstream.output_file import OutputFile, PlotFile
from trtstream.settings import DTYPE_BYTES, BuildConfig

if TYPE_CHECKING:
    from trtstream.evaluation.engines import Subject
    from trtstream.evaluation.runs import Run
    from trtstream.evaluation.tokens import TokenFile

DEFAULTS = BuildConfig()
METHODS = ("streaming", "window", "dense", "recompute")
DISTANCES = "20,100,1000,100000"


class Numbers(click.ParamType):
    """A list of different numbers of at least ``least``, with commas."""

    name = "list"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() and int(part) >= self._least for part in parts):
            self.fail(
                f"{value!r} is not a list of numbers from {self._least} on, such as {self._least},100", param, ctx
            )
        return sorted({int(part) for part in parts})


def method_list(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> list[str]:
    methods = [method.strip() for part in value for method in part.split(",")]
    unknown = next((method for method in methods if method not in METHODS), None)
    if unknown is not None:
        raise click.BadParameter(f"{unknown!r} is none of {', '.join(METHODS)}")
    return list(dict.fromkeys(methods))


TEXT = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.command("eval")
@click.argument("checkpoint", metavar="CHECKPOINT|ENGINE")
@click.option("--revision", help="Branch, tag or commit of a repository on the Hugging Face hub.  [default: main]")
@click.option("--text", required=True, type=TEXT, help="The text: a UTF-8 file of any length.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="METHOD",
    callback=method_list,
    default=["streaming"],
    help=f"{', '.join(METHODS)}; repeat it or give a list with commas.  [default: streaming]",
)
@click.option("--tokens", type=click.IntRange(1), help="Tokens of the text to predict.  [default: all]")
@click.option("--sink-token-length", type=click.IntRange(0), help=f"[default: {DEFAULTS.sink_token_length}]")
@click.option(
    "--max-attention-window",
    type=click.IntRange(1),
    help=f"Tokens that each token sees, sinks included.  [default: {DEFAULTS.max_attention_window}, or the "
    "checkpoint's context if that is shorter]",
)
@click.option("--dtype", type=click.Choice(list(DTYPE_BYTES)), help="[default: float32 on a CPU, bfloat16 on a GPU]")
@click.option(
    "--every",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="recompute: predict each N-th token only; the other methods' figures for those are given beside it.",
)
@click.option("--sweep-sinks", type=Numbers(0), help="Compare numbers of sink tokens, such as 0,1,2,4,8.")
@click.option("--sweep-window", type=Numbers(1), help="Compare windows, such as 256,512,1024.")
@click.option(
    "--recall",
    "distances",
    type=Numbers(1),
    is_flag=False,
    flag_value=DISTANCES,
    help=f"Plant facts in the text, and ask for them so many tokens later.  [--recall alone: {DISTANCES}]",
)
@click.option("--facts", default=32, show_default=True, type=click.IntRange(1, 256), help="recall: facts to plant.")
@click.option("--force", is_flag=True, help="Allow windows beyond the checkpoint's trained context.")
@click.option(
    "--losses", type=click.Path(file_okay=False, path_type=Path), help="Keep each token's loss in this folder."
)
@click.option("--resume", is_flag=True, help="Go on with the runs that the --losses folder holds, if it holds any.")
@click.option("--json", "json_file", type=OutputFile(), help="Write the findings to this file.")
@click.option("--plot", "plot_file", type=PlotFile(), help="Draw the findings to this PNG file.")
def evaluate(
    checkpoint: str,
    revision: str | None,
    text: Path,
    methods: list[str],
    tokens: int | None,
    sink_token_length: int | None,
    max_attention_window: int | None,
    dtype: str | None,
    every: int,
    sweep_sinks: list[int] | None,
    sweep_window: list[int] | None,
    distances: list[int] | None,
    facts: int,
    force: bool,
    losses: Path | None,
    resume: bool,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure how well CHECKPOINT predicts a text with attention sinks, and without. An ENGINE has its own window.

    A CHECKPOINT may also be a repository on the Hugging Face hub (owner/name).

    Methods: streaming keeps sink tokens and recent ones; window recent ones only; dense sees everything before;
    recompute makes a new dense pass over the last tokens for each token.
    """
    sweeping = sweep_sinks is not None or sweep_window is not None
    if (sweeping or distances) and methods != ["streaming"]:
        raise click.UsageError("--sweep-sinks, --sweep-window and --recall are for --method streaming")
    if sweeping and distances:
        raise click.UsageError("--recall cannot be combined with a sweep; run them one after the other")
    if every > 1 and "recompute" not in methods:
        raise click.UsageError("--every is for --method recompute")
    if resume and losses is None:
        raise click.UsageError("--resume needs --losses FOLDER, which holds what to go on with")
    if distances and (losses is not None or tokens is not None):
        raise click.UsageError("--recall has no losses, and as many tokens as its distances take")
    if losses is not None:
        losses.mkdir(parents=True, exist_ok=True)

    from trtstream.build.hub import local_checkpoint
    from trtstream.evaluation.engines import open_subject
    from trtstream.evaluation.losses import refuse_existing
    from trtstream.evaluation.recall import tokens_needed
    from trtstream.evaluation.report import heading
    from trtstream.evaluation.runs import check_run, method_runs, sweep_runs, window_of
    from trtstream.evaluation.tokens import tokenize

    subject = open_subject(local_checkpoint(checkpoint, revision), dtype)
    sinks, window = window_of(subject, sink_token_length, max_attention_window)
    name = Path(checkpoint).name
    title = f"{name} on {text.name}"
    with tempfile.TemporaryDirectory() as scratch:
        limit = tokens_needed(window, distances, facts) if distances else None if tokens is None else tokens + 1
        ids = tokenize(text, subject.tokenizer, subject.model.vocab_size, Path(scratch) / "ids", limit)
        if tokens is not None and ids.count <= tokens:
            raise TrtstreamError(
                f"{text} has {ids.count} tokens, and the first is not predicted; use --tokens {ids.count - 1} or less"
            )
        if sweeping:
            runs = sweep_runs(subject, sweep_sinks or [sinks], sweep_window or [window])
        else:
            runs = method_runs(subject, methods, sinks, window, ids.count - 1, every)
        for run in runs:
            check_run(run, subject, force)
        report = heading(name, subject, text, ids.count if distances else ids.count - 1)
        if distances:
            report |= _recall(runs[0], subject, ids, distances, facts, title, plot_file)
        else:
            if losses is not None and not resume:
                refuse_existing(runs, losses)
            report |= _score(runs, subject, ids, losses, title, plot_file)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n")


def _score(
    runs: list[Run], subject: Subject, ids: TokenFile, losses: Path | None, title: str, plot: Path | None
) -> dict[str, Any]:
    """Make the runs, print and draw them; returns their part of the report."""
    from trtstream.evaluation.plot import plot_curves, plot_sweep
    from trtstream.evaluation.report import print_runs, run_report
    from trtstream.evaluation.runs import score_run

    smallest = min(run.max_attention_window for run in runs)
    if ids.count <= smallest and any(run.method != "dense" for run in runs):
        click.echo(f"warning: the text has {ids.count} tokens, and none leaves a window of {smallest}", err=True)
    try:
        reports = {run.name: run_report(score_run(run, subject, ids, losses)) for run in runs}
    except KeyboardInterrupt:
        if losses is not None:
            click.echo("interrupted; the same command with --resume goes on", err=True)
        raise
    print_runs(list(reports.values()))
    sweeping = runs[0].name != runs[0].method
    if plot is not None and sweeping:
        plot_sweep(plot, title, list(reports.values()))
    elif plot is not None:
        plot_curves(plot, title, reports)
    only = {"perplexity": next(iter(reports.values()))["perplexity"]} if len(runs) == 1 else {}
    return {**only, "sweep": list(reports.values())} if sweeping else {**only, "methods": reports}


def _recall(
    run: Run, subject: Subject, ids: TokenFile, distances: list[int], facts: int, title: str, plot: Path | None
) -> dict[str, Any]:
    """Ask, print and draw; returns the report's part."""
    from trtstream.evaluation.plot import plot_recall
    from trtstream.evaluation.recall import CHANCE, recall
    from trtstream.evaluation.report import print_recall
    from trtstream.progress import progress_bar

    sinks, window = run.sink_token_length, run.max_attention_window
    engine = subject.engine(sinks, window)
    with progress_bar("recall, tokens") as progress:
        answers = recall(engine, subject.tokenizer, ids, distances, facts, progress)
    print_recall(answers)
    if plot is not None:
        plot_recall(plot, title, answers, engine.build.ring, CHANCE)
    return {"sink_token_length": sinks, "max_attention_window": window, "chance": CHANCE, "recall": answers}
