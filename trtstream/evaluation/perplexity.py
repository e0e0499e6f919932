"""``trtstream eval`` of methods and sweeps: how well each run predicts the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from trtstream.errors import TrtstreamError
from trtstream.evaluation.engines import Subject
from trtstream.evaluation.options import Options
from trtstream.evaluation.plot import plot_curves, plot_sweep
from trtstream.evaluation.report import heading, print_runs, run_report
from trtstream.evaluation.runs import plan_runs, refuse_existing, score_run
from trtstream.evaluation.scoring import Run
from trtstream.evaluation.tokens import TokenFile, temporary_tokens


def evaluate_perplexity(options: Options, subject: Subject) -> dict[str, Any]:
    """Make the runs, print and draw them; returns the report. Raises TrtstreamError for what cannot be done."""
    limit = None if options.tokens is None else options.tokens + 1
    with temporary_tokens(options.text, subject.tokenizer, subject.model.vocab_size, limit) as ids:
        predictions = ids.count - 1
        if options.tokens is not None and predictions < options.tokens:
            raise TrtstreamError(
                f"{options.text} has {ids.count} tokens, and the first is not predicted; use --tokens {predictions} or "
                "less"
            )
        runs = plan_runs(options, subject, predictions)
        if options.keep is not None and not options.resume:
            refuse_existing(runs, options.keep, ".f32")
        reports = _score(options, runs, subject, ids)
    print_runs(list(reports.values()))
    if options.plot_file is not None and options.sweeping:
        plot_sweep(options.plot_file, options.title, list(reports.values()))
    elif options.plot_file is not None:
        plot_curves(options.plot_file, options.title, reports)
    return {
        **heading(options, subject, predictions),
        **({"perplexity": reports[runs[0].name]["perplexity"]} if len(runs) == 1 else {}),
        **({"sweep": list(reports.values())} if options.sweeping else {"methods": reports}),
    }


def _score(options: Options, runs: Sequence[Run], subject: Subject, ids: TokenFile) -> dict[str, dict[str, Any]]:
    """The report of each run, by its name."""
    smallest = min(run.max_attention_window for run in runs)
    if ids.count <= smallest and any(run.method != "dense" for run in runs):
        click.echo(f"warning: the text has {ids.count} tokens, and none leaves a window of {smallest}", err=True)
    return {run.name: run_report(score_run(run, subject, ids, options.keep)) for run in runs}
