"""``trtstream eval``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from trtstream.errors import TrtstreamError
from trtstream.settings import DTYPE_BYTES, BuildConfig

DEFAULTS = BuildConfig()
METHODS = ("streaming", "window", "dense", "recompute")


def output_file(_context: click.Context, _option: click.Parameter, value: Path | None) -> Path | None:
    """Refuse before the work what could not be written after it."""
    if value is not None and not value.absolute().parent.is_dir():
        raise click.BadParameter(f"the folder {value.absolute().parent} does not exist")
    return value


def method_list(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> list[str]:
    methods = [method.strip() for part in value for method in part.split(",")]
    unknown = next((method for method in methods if method not in METHODS), None)
    if unknown is not None:
        raise click.BadParameter(f"{unknown!r} is none of {', '.join(METHODS)}")
    return list(dict.fromkeys(methods))


FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command("eval")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="CHECKPOINT|ENGINE")
@click.option(
    "--text", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A UTF-8 text file."
)
@click.option(
    "--method", "methods", multiple=True, default=["streaming"], show_default=True, callback=method_list,
    help=f"{', '.join(METHODS)}: several, or a list with commas.",
)  # fmt: skip
@click.option("--tokens", type=click.IntRange(1), help="Tokens to predict.  [default: the whole text]")
@click.option("--sink-token-length", type=click.IntRange(0), help=f"[default: {DEFAULTS.sink_token_length}]")
@click.option(
    "--max-attention-window", type=click.IntRange(1), help="Tokens that are seen, sinks included.  [default: 1024]"
)
@click.option("--dtype", type=click.Choice(list(DTYPE_BYTES)), help="[default: the target's]")
@click.option("--every", default=1, show_default=True, type=click.IntRange(1), help="recompute: each N-th token only.")
@click.option("--force", is_flag=True, help="Allow more tokens at once than the checkpoint's trained context.")
@click.option(
    "--losses", type=click.Path(file_okay=False, path_type=Path), help="Keep each token's loss in this folder."
)
@click.option("--resume", is_flag=True, help="Go on with the run that the --losses folder holds, if it holds one.")
@click.option("--json", "json_file", type=FILE, callback=output_file, help="Write the findings to this file.")
@click.option("--plot", "plot_file", type=FILE, callback=output_file, help="Draw loss against position to this PNG.")
def evaluate(
    checkpoint: Path,
    text: Path,
    methods: list[str],
    tokens: int | None,
    sink_token_length: int | None,
    max_attention_window: int | None,
    dtype: str | None,
    every: int,
    force: bool,
    losses: Path | None,
    resume: bool,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure how well CHECKPOINT (or an engine, with its own window) predicts a text."""
    if resume and losses is None:
        raise click.UsageError("--resume needs --losses FOLDER, which holds the run to go on with")
    if plot_file is not None:
        from trtstream.evaluation.plot import require_matplotlib

        require_matplotlib()
    from trtstream.evaluation.engines import open_subject
    from trtstream.evaluation.report import evaluation_report, print_table
    from trtstream.evaluation.runs import check_run, method_runs, score_run, window_of
    from trtstream.evaluation.tokens import tokenize

    if losses is not None:
        losses.mkdir(parents=True, exist_ok=True)
    subject = open_subject(checkpoint, dtype)
    sinks, window = window_of(subject, sink_token_length, max_attention_window)
    with tempfile.TemporaryDirectory() as scratch:
        limit = None if tokens is None else tokens + 1
        ids = tokenize(text, subject.tokenizer, subject.model.vocab_size, Path(scratch) / "ids", limit)
        if tokens is not None and ids.count <= tokens:
            raise TrtstreamError(
                f"{text} has {ids.count} tokens, which --tokens {ids.count - 1} predicts all but one of"
            )
        if ids.count <= window:
            click.echo(f"warning: {text} has {ids.count} tokens, and none leaves a window of {window}", err=True)
        runs = method_runs(subject, methods, sinks, window, ids.count - 1, every)
        for run in runs:
            check_run(run, subject, force)
        logs = [score_run(run, subject, ids, losses, resume=resume) for run in runs]
    report = evaluation_report(checkpoint, subject, text, ids.count - 1, logs)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    if plot_file is not None:
        from trtstream.evaluation.plot import plot_curves

        plot_curves(plot_file, f"{checkpoint.name} on {text.name}", report["methods"])
    print_table(report["methods"].values())
