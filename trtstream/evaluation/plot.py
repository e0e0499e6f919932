"""Pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FIRST = 32
NAMES = {"sink_token_length": "sink tokens", "max_attention_window": "attention window (tokens)"}


def plot_curves(path: Path, title: str, reports: dict[str, dict[str, Any]]) -> None:
    """Draw every run's mean loss against the position in the text (log scale) to the PNG file ``path``.

    The first tokens, which every method predicts equally badly, are left out. A sampled run together with others is in
    the legend only: its few losses make no curve.
    """
    sampled = all("perplexity_at_sampled" in report for report in reports.values())
    key, legend = ("perplexity_at_sampled", "perplexity at sampled tokens") if sampled else ("perplexity", "perplexity")
    with picture(path, title) as axis:
        for name, report in reports.items():
            points = [point for point in report["curve"] if point["first"] >= FIRST] or report["curve"]
            middle = [(point["first"] * point["last"]) ** 0.5 for point in points]
            label = f"{name}: {report[key]:.2f}"
            if sampled and report["every"] > 1:
                axis.plot([], [], linestyle="none", label=f"{label} (no curve)")
            else:
                axis.plot(middle, [point["loss"] for point in points], marker=".", label=label)
        axis.set(xlabel="position in the text (tokens)", ylabel="loss (nats per token)", xscale="log")
        axis.legend(title=legend)


def plot_sweep(path: Path, title: str, reports: Sequence[dict[str, Any]]) -> None:
    """Draw perplexity against the number of sink tokens, or against the window if only windows were swept."""
    swept, other = "sink_token_length", "max_attention_window"
    if len({report[swept] for report in reports}) == 1:
        swept, other = other, swept
    with picture(path, title) as axis:
        for value in sorted({report[other] for report in reports}):
            line = sorted((report[swept], report["perplexity"]) for report in reports if report[other] == value)
            axis.plot(*zip(*line, strict=True), marker="o", label=f"{NAMES[other]} {value}")
        axis.set(xlabel=NAMES[swept], ylabel="perplexity", xticks=sorted({report[swept] for report in reports}))
        axis.legend()


def plot_recall(path: Path, title: str, answers: Sequence[dict[str, Any]], ring: int, chance: float) -> None:
    """Draw accuracy against distance (log scale), with the ring's end and the level of chance."""
    with picture(path, title) as axis:
        axis.plot([a["distance"] for a in answers], [a["accuracy"] for a in answers], marker="o", label="right answers")
        axis.axvline(ring, linestyle="--", color="gray", label=f"{ring} recent tokens are kept")
        axis.axhline(chance, linestyle=":", color="gray", label=f"guessing: {chance:.0%}")
        axis.set(xlabel="tokens between fact and question", ylabel="accuracy", xscale="log")
        axis.legend()


def plot_generation(path: Path, title: str, reports: dict[str, dict[str, Any]]) -> None:
    """Draw the dense model's loss of what each method generated last, against how far it has come."""
    with picture(path, title) as axis:
        for name, report in reports.items():
            curve = report["curve"]
            label = (
                f"{name}: distinct-4 {report['distinct']['4']:.2f}, longest loop {report['longest_loop']['tokens']:,}"
            )
            axis.plot(
                [point["last"] + 1 for point in curve], [point["loss"] for point in curve], marker=".", label=label
            )
        axis.set(xlabel="generated tokens", ylabel="loss under the dense model (nats per token)")
        axis.legend()


@contextmanager
def picture(path: Path, title: str, *, from_zero: bool = True) -> Iterator[Any]:
    """Axes to draw in, from zero upwards or as the values need; saved when the block ends."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 5), layout="constrained")
    yield axis
    axis.set(title=title)
    if from_zero:
        axis.set(ylim=(0, None))
    axis.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)
    pyplot.close(figure)
