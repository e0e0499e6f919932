"""The picture of a bench: latency and throughput against concurrency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtstream.deploy.client.metrics import Distribution, Summary


def save_plot(path: Path, summaries: Sequence[Summary], title: str) -> None:
    """Draw ``summaries`` to the PNG file ``path``. Axes start at zero; a level without successes is left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    levels = [summary for summary in summaries if summary.time_to_first_token_ms is not None]
    turns = max((len(level.time_to_first_token_ms_by_turn) for level in levels), default=0)
    figure, axes = pyplot.subplots(1, 4 if turns > 1 else 3, figsize=(16 if turns > 1 else 12, 4), layout="constrained")
    figure.suptitle(title)

    throughput = [level.output_token_throughput for level in levels]
    axes[0].plot([level.concurrency for level in levels], throughput, marker="o")
    axes[0].set(title="Output token throughput", xlabel="concurrency", ylabel="tokens per second")
    _plot_latency(axes[1], levels, [level.time_to_first_token_ms for level in levels])
    axes[1].set(title="Time to first token (TTFT)", xlabel="concurrency", ylabel="milliseconds")
    _plot_latency(axes[2], levels, [level.inter_token_latency_ms for level in levels])
    axes[2].set(title="Inter-token latency (ITL)", xlabel="concurrency", ylabel="milliseconds")
    for axis in axes[:3]:
        axis.set_xticks([level.concurrency for level in levels])
        axis.set_xlim(left=0)
    if turns > 1:
        for level in levels:
            points = [(n, d.p50) for n, d in enumerate(level.time_to_first_token_ms_by_turn, start=1) if d is not None]
            axes[3].plot(*zip(*points, strict=True), marker=".", label=f"concurrency {level.concurrency}")
        axes[3].set(title="TTFT along a session", xlabel="turn", ylabel="milliseconds (p50)")
        axes[3].legend()
        axes[3].xaxis.get_major_locator().set_params(integer=True)
    for axis in axes:
        if math.isfinite(axis.dataLim.ymax):
            axis.set_ylim(0, 1.1 * axis.dataLim.ymax)
        axis.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)
    pyplot.close(figure)


def _plot_latency(axis: Any, levels: Sequence[Summary], distributions: Sequence[Distribution | None]) -> None:
    for percentile in ("p50", "p90", "p99"):
        points = [
            (level.concurrency, getattr(d, percentile)) for level, d in zip(levels, distributions, strict=True) if d
        ]
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", label=percentile)
            axis.legend()
