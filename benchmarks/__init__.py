"""Measurements, run from the repository's root: ``python -m benchmarks.NAME``."""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def write_json(path: Path | None, values: object) -> None:
    """Write what was measured to the file of ``--json``, if there is one."""
    if path is not None:
        path.write_text(json.dumps(values, indent=2) + "\n")
