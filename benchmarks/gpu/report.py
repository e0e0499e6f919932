"""The results as markdown: the goals, then one table a part with a column for every key that its rows have."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.bench import Row

GOAL_COLUMNS = ("model", "window", "method", "goal", "met")


def markdown(results: dict[str, Any]) -> str:
    lines = [f"# {results['device']}", ""]
    goals = [
        {"part": name, **{key: row.get(key) for key in GOAL_COLUMNS}}
        for name, part in results["parts"].items()
        for row in part["rows"]
        if "goal" in row
    ]
    if goals:
        lines += ["## Goals", "", *table(goals), ""]
    for name, part in results["parts"].items():
        lines += [f"## {name} ({part['state']}, {part['seconds']:.0f} s)", ""]
        if "error" in part:
            lines += [f"Failed: {part['error']}", ""]
        lines += [*table(part["rows"]), ""]
    return "\n".join(lines)


def table(rows: list[Row]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return []
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *cells)]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)
