"""The picture: each contestant's decode step, and its floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot(path: Path, title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Draw the rows that were measured to the PNG file ``path``, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [row for row in rows if "decode_ms" in row][::-1]  # the first on top
    figure, axis = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for row in measured:
        ms, color = row["decode_ms"], "tab:blue" if row["name"].startswith("trtstream") else "tab:gray"
        spread = [[ms - row["decode_ms_p10"]], [row["decode_ms_p90"] - ms]]
        axis.errorbar([ms], [row["name"]], xerr=spread, marker="o", markersize=8, color=color, capsize=4)
    floors, names = [row["floor_ms"] for row in measured], [row["name"] for row in measured]
    axis.plot(floors, names, linestyle="", marker="|", markersize=14, color="tab:red", label="the memory's floor")
    axis.set(title=title, xlabel="ms per token, median and p10 to p90", xscale="log")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, format="png", dpi=120)
    pyplot.close(figure)
