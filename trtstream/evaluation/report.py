"""What an evaluation found, as JSON values and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trtstream.evaluation.engines import Subject
from trtstream.evaluation.losses import LossLog
from trtstream.machine import machine


def evaluation_report(
    checkpoint: Path, subject: Subject, text: Path, predictions: int, logs: Sequence[LossLog]
) -> dict[str, Any]:
    """All that an evaluation was given and found; ``perplexity`` stands on top where one method ran."""
    report: dict[str, Any] = {
        "checkpoint": checkpoint.name,
        "architecture": subject.model.architecture,
        "text": text.name,
        "tokens": predictions,
        "target": subject.target,
        "dtype": subject.dtype,
        "machine": machine(),
        "methods": {log.run.name: method_report(log) for log in logs},
    }
    if len(logs) == 1:
        report["perplexity"] = logs[0].curve.perplexity
    return report


def method_report(log: LossLog) -> dict[str, Any]:
    """One run's settings and findings. Losses are in nats per token."""
    run = log.run
    return {
        "method": run.method,
        "sink_token_length": run.sink_token_length,
        "max_attention_window": run.max_attention_window,
        "every": run.every,
        "perplexity": log.curve.perplexity,
        "loss": log.curve.mean,
        "predictions": log.curve.count,
        "seconds": log.seconds,
        "curve": log.curve.points(),
        "resident": log.resident,
    }


def print_table(reports: Iterable[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("method")
    for name in ("sink tokens", "window", "predictions", "perplexity", "seconds"):
        table.add_column(name, justify="right")
    for report in reports:
        sampled = "" if report["every"] == 1 else f" (every {report['every']})"
        table.add_row(
            report["method"],
            str(report["sink_token_length"]),
            str(report["max_attention_window"]),
            f"{report['predictions']:,}{sampled}",
            f"{report['perplexity']:.4f}",
            f"{report['seconds']:.1f}",
        )
    Console().print(table)
