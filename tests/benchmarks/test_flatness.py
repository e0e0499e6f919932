"""benchmarks.flatness on a tiny model: what it feeds and what it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import flatness
from tests.checkpoints import write_checkpoint
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.cpu import build_cpu_engine
from trtstream.settings import BuildConfig

WINDOW = 32


def test_memory_and_latency_go_into_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "checkpoint", "llama-gqa")
    build = BuildConfig(max_batch_size=2, max_attention_window=WINDOW)
    build_cpu_engine(open_checkpoint(tmp_path / "checkpoint"), build, tmp_path / "engine", lambda done, total: None)
    options = ["--tokens", "400", "--samples", "4", "--steps", "3", "--json", str(tmp_path / "flatness.json")]
    monkeypatch.setattr(sys, "argv", ["flatness", str(tmp_path / "engine"), *options])
    flatness.main()
    values = json.loads((tmp_path / "flatness.json").read_text())
    assert [sample["position"] for sample in values["history"]] == [2 * WINDOW + fed for fed in (100, 200, 300, 400)]
    assert all(sample["resident_bytes"] > 1e6 for sample in values["history"])
    decode = values["decode"]
    assert decode["steps"] == 3
    assert decode["old_to_young"] == pytest.approx(decode["old_ms"] / decode["young_ms"])
