"""The measurement of what sessions cost, on a tiny engine: every case runs, and its rows are complete."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import session_costs
from tests.engines import build_variant


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"max_batch_size": 2, "max_num_tokens": 32, "max_attention_window": 32}
    _, engine = build_variant(tmp_path, "llama-gqa", **sizes)
    monkeypatch.setattr(session_costs, "STORED_SESSIONS", 100)
    options = ["--tokens", "200", "--rounds", "2", "--starts", "1", "--json", str(tmp_path / "costs.json")]
    monkeypatch.setattr(sys, "argv", ["session_costs", str(engine), *options])
    session_costs.main()
    rows = json.loads((tmp_path / "costs.json").read_text())["rows"]
    assert [row["what"] for row in rows] == [
        "a turn's last response",
        "others' inter-token time",
        "a start, up to a first answer",
        "a fork",
        "200 tokens, a snapshot of 0.0 MB",
        "200 tokens, from the log",
    ]
    assert all(len(row) == 9 and row["ms"] > 0 for row in rows)
    assert capsys.readouterr().out.count("\n") == len(rows) + 2
