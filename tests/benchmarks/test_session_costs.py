"""The measurement of what sessions cost, on a tiny engine: every case runs, and its rows are complete."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import session_costs
from tests.engines import build_variant


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"max_batch_size": 4, "max_num_tokens": 32, "max_attention_window": 32}
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
        "another answer to the last question",
        "200 tokens, a snapshot of 0.0 MB",
        "200 tokens, from the log",
    ]
    assert all(row["ms"] > 0 for row in rows)
    assert [row["what"] for row in rows if "met" in row] == [rows[number]["what"] for number in (0, 1, 2, 3, 5)]
    assert capsys.readouterr().out.count("\n") == len(rows) + 2


@pytest.mark.parametrize(
    ("again", "compared", "counts", "met"),
    [(0.1005, 0.1015, True, True), (0.1, 0.1025, True, False), (0.102, 0.1, False, None)],
)
def test_a_bound_is_judged_only_by_a_run_that_counts(again: float, compared: float, counts: bool, met: bool) -> None:
    seconds = {"a": [0.1], "again": [again], "b": [compared]}
    for bound in ({"ms": 2.0}, {"times": 1.02}):
        made = session_costs.judged("a case", seconds, "a bound", **bound)
        assert (made["counts"], made["met"]) == (counts, met)
