"""The results as markdown: the goals, then a table for each part.

python -m benchmarks.gpu.report FILE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import CALL_SECONDS, Call
from benchmarks.gpu.results import failed, rows_of
from benchmarks.markdown import table

GOAL_COLUMNS = ("model", "window", "batch", "method", "goal", "met", "reached", "bound")


def markdown(results: dict[str, Any]) -> str:
    sections = [f"# {results['device']}", goals(results)]
    sections += [part_table(name, part) for name, part in results["parts"].items()]
    return "\n\n".join(filter(None, sections)) + "\n"


def goals(results: dict[str, Any]) -> str:
    """The rows that have a goal; ``bound`` is the best that arithmetic allows."""
    rows = [
        {"part": name, **{key: row.get(key) for key in GOAL_COLUMNS}}
        for name, part in results["parts"].items()
        for row in rows_of(part)
        if "goal" in row
    ]
    return f"## Goals\n\n{table(rows)}" if rows else ""


def part_table(name: str, part: dict[str, Any]) -> str:
    rows = rows_of(part)
    failures = f", {count} failed" if (count := sum(map(failed, rows))) else ""
    sections = [f"## {name} ({part['state']}{failures}, {part['seconds']:.0f} s)"]
    sections += [f"Failed: {part['error']}"] if "error" in part else []
    return "\n\n".join(filter(None, [*sections, table(rows)]))


def plan_lines(calls: Sequence[Call]) -> str:
    """The calls of a session, and what to do between them."""
    if not calls:
        return "nothing is missing"
    lines = [
        f"call {number}, about {call.seconds:.0f} s for {call.cases} measurements:\n"
        f"    python -m benchmarks.gpu --parts {','.join(call.parts)} --seconds {CALL_SECONDS}"
        for number, call in enumerate(calls, 1)
    ]
    lines.append("Where only $OUT comes back, copy its gpu-*.json to benchmarks/results before the next call.")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
