"""The measurement of what recall costs, on a tiny engine: every case runs, and what is printed is complete."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import recall_costs
from tests.checkpoints import write_checkpoint
from tests.runtime.clients import BOS, EOS, byte_tokenizer
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.cpu import build_cpu_engine
from trtstream.samples.gpl import GPL
from trtstream.settings import BuildConfig


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "checkpoint", "llama-gqa", vocab_size=260, bos_token_id=BOS, eos_token_id=EOS
    )
    byte_tokenizer().save_pretrained(checkpoint)
    sizes = BuildConfig(max_batch_size=3, max_num_tokens=64, max_attention_window=256)
    build_cpu_engine(open_checkpoint(checkpoint), sizes, tmp_path / "engine", lambda done, total: None)
    monkeypatch.setattr(recall_costs, "CHAT", recall_costs.CHAT[:3])
    monkeypatch.setattr(recall_costs, "ANSWER", 4)
    options = ["--text", str(GPL), "--tokens", "8000", "--indexed", "60000", "--rounds", "1"]
    arguments = [str(tmp_path / "engine"), *options, "--json", str(tmp_path / "costs.json")]
    monkeypatch.setattr(sys, "argv", ["recall_costs", *arguments])
    recall_costs.main()
    result = json.loads((tmp_path / "costs.json").read_text())
    text, chat = result["perplexity"]
    assert (text["turns"], chat["turns"]) == (32, 3)
    assert 0 < text["most tokens"] <= recall_costs.RECALL
    assert text["without"] != text["with recall"]
    assert result["search"]["searches"] == 3 * recall_costs.FACTS
    assert result["search"]["found"] > recall_costs.FACTS
    assert result["memory"]["without"] > 0
    assert capsys.readouterr().out.count("\n") == 3 * 4 + 5
