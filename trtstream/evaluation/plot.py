"""The pictures of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtstream.errors import TrtstreamError


def require_matplotlib() -> None:
    """Raise TrtstreamError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise TrtstreamError("--plot needs matplotlib: pip install 'trtstream[bench]'") from None


def plot_curves(path: Path, title: str, reports: dict[str, dict[str, Any]]) -> None:
    """Draw every run's mean loss against the position in the text (log scale) to the PNG file ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for name, report in reports.items():
        points = report["curve"]
        middle = [(point["first"] * point["last"]) ** 0.5 for point in points]
        label = f"{name}: perplexity {report['perplexity']:.2f}"
        axis.plot(middle, [point["loss"] for point in points], marker=".", label=label)
    axis.set(title=title, xlabel="position in the text (tokens)", ylabel="loss (nats per token)", xscale="log")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, format="png", dpi=120)
    pyplot.close(figure)
