"""The measurement of a served model beside its engine, on a tiny engine and a real Triton."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import served_rate
from tests.engines import build_variant


@pytest.mark.slow
@pytest.mark.process
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, engine = build_variant(tmp_path, "llama-gqa", max_batch_size=8, max_num_tokens=32, max_attention_window=32)
    output = tmp_path / "rate.json"
    options = ["--rounds", "2", "--tokens", "300", "--json", str(output)]
    monkeypatch.setattr(sys, "argv", ["served_rate", str(engine), *options])
    served_rate.main()
    rows = json.loads(output.read_text())["rows"]
    assert [row["sessions"] for row in rows] == [1, 8]
    for row in rows:
        assert row["served_tokens_per_s"] > 0
        assert row["engine_tokens_per_s"] > 0
        assert 0 < row["clients_share_of_a_core"] < 2
    assert capsys.readouterr().out.count("\n") == 4


def test_a_smaller_engine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, engine = build_variant(tmp_path, "llama-gqa", max_batch_size=2, max_attention_window=32)
    monkeypatch.setattr(sys, "argv", ["served_rate", str(engine)])
    with pytest.raises(SystemExit) as stopped:
        served_rate.main()
    assert stopped.value.code == 2
    assert "the engine decodes 2 sessions together, and this takes 8" in capsys.readouterr().err
