"""The results as markdown: the goals, then a table for each part."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import table

GOAL_COLUMNS = ("model", "window", "method", "goal", "met")


def markdown(results: dict[str, Any]) -> str:
    goals = [
        {"part": name, **{key: row.get(key) for key in GOAL_COLUMNS}}
        for name, part in results["parts"].items()
        for row in part["rows"]
        if "goal" in row
    ]
    sections = [f"# {results['device']}", *(["## Goals", table(goals)] if goals else [])]
    for name, part in results["parts"].items():
        sections.append(f"## {name} ({part['state']}, {part['seconds']:.0f} s)")
        sections += [f"Failed: {part['error']}"] if "error" in part else []
        sections.append(table(part["rows"]))
    return "\n\n".join(filter(None, sections)) + "\n"
