"""The findings of an evaluation, as JSON values and as tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from trtstream.evaluation.engines import Subject
from trtstream.evaluation.losses import LossLog
from trtstream.evaluation.options import Options
from trtstream.machine import machine
from trtstream.tables import print_table


def heading(options: Options, subject: Subject, tokens: int) -> dict[str, Any]:
    """The checkpoint, the text and the machine of a report. ``tokens`` of the text are predicted, or streamed."""
    return {
        "checkpoint": options.checkpoint_name,
        "architecture": subject.model.architecture,
        "text": options.text.name,
        "tokens": tokens,
        "target": subject.target,
        "dtype": subject.dtype,
        "machine": machine(),
    }


def run_report(log: LossLog) -> dict[str, Any]:
    """One run's settings and findings. Losses are in nats per token.

    Together with a ``recompute`` that samples, every run also has its findings over those positions alone.
    """
    run = log.run
    sampled = {"perplexity_at_sampled": log.sampled.perplexity, "loss_at_sampled": log.sampled.mean}
    return {
        "method": run.method,
        "sink_token_length": run.sink_token_length,
        "max_attention_window": run.max_attention_window,
        "every": run.every,
        "perplexity": log.curve.perplexity,
        "loss": log.curve.mean,
        **(sampled if run.sample > 1 else {}),
        "predictions": log.curve.count,
        "seconds": log.seconds,
        "curve": log.curve.points(),
        "resident": log.resident,
    }


def print_runs(reports: Sequence[dict[str, Any]]) -> None:
    """Print one line for each run; together with a sampled ``recompute``, also its perplexity over those positions."""
    every = max(report["every"] for report in reports)
    sampled = (f"every\n{every}th",) if "perplexity_at_sampled" in reports[0] else ()
    print_table(
        ("method", "sink\ntokens", "window", "predictions", "perplexity", *sampled, "seconds"),
        (
            (
                report["method"],
                str(report["sink_token_length"]),
                str(report["max_attention_window"]),
                f"{report['predictions']:,}" + (f" (every {every})" if every > 1 and not sampled else ""),
                f"{report['perplexity']:.4f}",
                *(f"{report['perplexity_at_sampled']:.4f}" for _ in sampled),
                f"{report['seconds']:.1f}",
            )
            for report in reports
        ),
        left=1,
    )


def print_generation(reports: Sequence[dict[str, Any]]) -> None:
    """Print one line for each method: different n-grams, the longest loop, and the first and the last perplexity."""
    shortest, *_, longest = reports[0]["distinct"]
    print_table(
        ("method", f"distinct\n{shortest}", f"\n{longest}", "loop", "period", "perplexity", "at last"),
        (
            (
                report["method"],
                f"{report['distinct'][shortest]:.3f}",
                f"{report['distinct'][longest]:.3f}",
                f"{report['longest_loop']['tokens']:,}",
                f"{report['longest_loop']['period']:,}",
                f"{math.exp(report['curve'][0]['loss']):.2f}",
                f"{math.exp(report['curve'][-1]['loss']):.2f}",
            )
            for report in reports
        ),
        left=1,
    )


def print_recall(answers: Iterable[dict[str, Any]]) -> None:
    print_table(
        ("tokens back", "in the window", "questions", "right", "accuracy"),
        (
            (
                f"{answer['distance']:,}",
                "yes" if answer["in_window"] else "no",
                str(answer["questions"]),
                str(answer["right"]),
                f"{answer['accuracy']:.0%}",
            )
            for answer in answers
        ),
    )


def print_with_recall(rows: Sequence[dict[str, Any]]) -> None:
    print_table(
        ("questions", "tokens back", "asked", "answers", "without", "with recall", "tokens again"),
        (
            (
                row["kind"],
                f"{row['distance']:,}",
                str(row["questions"]),
                row["counted"],
                f"{row['without_recall'] / row['questions']:.0%}",
                f"{row['with_recall'] / row['questions']:.0%}",
                f"{row['tokens_read_again']:.0f}",
            )
            for row in rows
        ),
        left=1,
    )
