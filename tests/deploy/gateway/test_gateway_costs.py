"""The measurement of what the gateway costs, on a tiny engine: every case runs, and its rows are complete."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gateway_costs

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def test_it_runs(
    endless_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tokens", "8", "--rounds", "2", "--clients", "3", "--conversations", "1"]
    monkeypatch.setattr(gateway_costs, "TURNS", 5)
    monkeypatch.setattr(
        sys, "argv", ["gateway_costs", str(endless_engine), *options, "--json", str(tmp_path / "costs.json")]
    )
    gateway_costs.main()
    rows = json.loads((tmp_path / "costs.json").read_text())["rows"]
    ways = ["TTFT by responses", "TTFT by conversation", "TTFT by history"]
    assert [row["what"] for row in rows] == ["TTFT", "ITL", "3 answers at once", *ways]
    assert all(len(row) == 9 and row["ms"] > 0 for row in rows)
    assert capsys.readouterr().out.count("\n") == len(rows) + 2
