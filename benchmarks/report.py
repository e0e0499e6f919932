"""Writes docs/results.md from results.md.jinja and the JSON files in benchmarks/results/:

    python -m benchmarks.report

The same files give the same document, byte for byte. Each section names the command that makes its JSON and picture.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks import RESULTS, paper
from benchmarks.compare.findings import cells, evaluation_line
from benchmarks.markdown import table
from trtstream.samples.gpl import GPL
from trtstream.samples.smollm2 import FILE_NAME

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "results.md"


def document() -> str:
    results = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    templates = Environment(
        loader=FileSystemLoader(ROOT / "benchmarks"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"f": format, "cells": cells, "without": without}
    functions = {
        "column": column,
        "differences": differences,
        "evaluation_line": evaluation_line,
        "even_share": even_share,
        "exp": math.exp,
        "table": table,
        "widest_spread": widest_spread,
    }
    template = templates.get_template("results.md.jinja", globals=functions)
    return template.render(results=results, paper=paper, gpl=GPL, checkpoint=FILE_NAME)


def without(row: dict[str, str], column: str) -> dict[str, str]:
    return {name: cell for name, cell in row.items() if name != column}


def column(rows: dict[str, tuple[str, ...]], index: int) -> str:
    """The cells in place ``index`` of all rows."""
    return " | ".join(row[index] for row in rows.values())


def differences(places: list[dict[str, Any]]) -> list[float]:
    """The long session's loss less the fresh session's at each place, the largest last."""
    return sorted((place["long_session"] - place["fresh_session"] for place in places), key=abs)


def even_share(context: int) -> float:
    """Of the attention of the tokens in the second half of a context: what one token gets if all that are seen do."""
    second_half = range(context // 2, context)
    return sum(1 / (position + 1) for position in second_half) / len(second_half)


def widest_spread(models: list[dict[str, Any]]) -> float:
    """The largest difference between a model's perplexities with several numbers of sinks, over the smallest."""
    perplexities = [model["perplexity"].values() for model in models]
    return max(max(values) / min(values) - 1 for values in perplexities)


def main() -> None:
    DOCUMENT.write_text(document())


if __name__ == "__main__":
    main()
