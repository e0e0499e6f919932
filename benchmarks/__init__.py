"""Measurements, run from the repository's root: ``python -m benchmarks.NAME``."""

from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
