"""``trtstream eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from trtstream.evaluation.options import Options
from trtstream.output_file import OutputFile, PlotFile
from trtstream.settings import DTYPE_BYTES, BuildConfig

DEFAULTS = BuildConfig()
METHODS = ("streaming", "window", "dense", "recompute", "lru")
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
        raise click.BadParameter(f"{unknown!r} is unknown; choose from {', '.join(METHODS)}")
    return list(dict.fromkeys(methods))


TEXT = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.command("eval")
@click.argument("checkpoint", type=click.Path(), metavar="CHECKPOINT|ENGINE")
@click.option("--revision", help="Branch, tag or commit of a repository on the Hugging Face hub.  [default: main]")
@click.option("--text", required=True, type=TEXT, help="The text: a UTF-8 file of any length.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="METHOD",
    callback=method_list,
    default=["streaming"],
    help=f"{', '.join(METHODS)}; repeat it or give a list with commas. An ENGINE has streaming only."
    "  [default: streaming]",
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
    help="recompute: predict every N-th token only; the other methods' figures for those are also given.",
)
@click.option("--sweep-sinks", type=Numbers(0), help="Compare numbers of sink tokens, such as 0,1,2,4,8.")
@click.option("--sweep-window", type=Numbers(1), help="Compare windows, such as 256,512,1024.")
@click.option(
    "--recall",
    type=Numbers(1),
    is_flag=False,
    flag_value=DISTANCES,
    help=f"Plant facts in the text, and ask for them that many tokens later.  [--recall alone: {DISTANCES}]",
)
@click.option("--facts", default=32, show_default=True, type=click.IntRange(1, 256), help="recall: facts to plant.")
@click.option(
    "--with-recall",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=128,
    help="recall: also let each question read up to that many tokens again, as a turn with recall does; asked in other "
    "words, of facts that changed, and of none, too.  [--with-recall alone: 128]",
)
@click.option(
    "--generate",
    type=click.IntRange(1),
    help="Have each method write that many tokens after the text's beginning, and measure repetition, and perplexity "
    "under the dense model.",
)
@click.option("--force", is_flag=True, help="Allow windows beyond the checkpoint's trained context.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep each token's loss in this folder, or what each method generates.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the runs that the --keep folder holds, if it holds any; of --generate, those that are complete.",
)
@click.option("--json", "json_file", type=OutputFile(), help="Write the findings to this file.")
@click.option("--plot", "plot_file", type=PlotFile(), help="Draw the findings to this PNG file.")
def evaluate(**values: Any) -> None:
    """Measure how well CHECKPOINT predicts a text with attention sinks, and without.

    A CHECKPOINT may also be a repository on the Hugging Face hub (owner/name).

    Methods: streaming keeps sink tokens and recent ones; window recent ones only; dense sees everything before;
    recompute makes a new dense pass over the last tokens for each token; lru keeps those that were attended to last.

    An ENGINE is measured in its own window, and as streaming only: give its checkpoint for the other methods and for
    sweeps.
    """
    options = Options(**values)
    options.check()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)

    from trtstream.build.hub import local_checkpoint
    from trtstream.evaluation.engines import open_subject
    from trtstream.evaluation.generation import evaluate_generation
    from trtstream.evaluation.perplexity import evaluate_perplexity
    from trtstream.evaluation.recall import evaluate_recall
    from trtstream.evaluation.with_recall import evaluate_with_recall

    subject = open_subject(local_checkpoint(options.checkpoint, options.revision), options.dtype)
    try:
        if options.generate is not None:
            report = evaluate_generation(options, subject)
        elif options.with_recall is not None:
            report = evaluate_with_recall(options, subject)
        else:
            report = (evaluate_perplexity if options.recall is None else evaluate_recall)(options, subject)
    except KeyboardInterrupt:
        if options.keep is not None:
            click.echo("interrupted; the same command with --resume continues", err=True)
        raise
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(report, indent=2) + "\n")
