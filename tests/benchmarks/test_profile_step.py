"""benchmarks.profile_step on a tiny model: what it measures and writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import profile_step, read_memory
from tests.engines import build_variant


def test_a_steps_parts_and_the_floor_go_into_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine = build_variant(tmp_path, "llama-gqa", max_attention_window=32, quantization="int8")
    monkeypatch.setattr(read_memory, "LEAST_BYTES", 1 << 20)
    options = ["--rounds", "2", "--json", str(tmp_path / "profile.json")]
    monkeypatch.setattr(sys, "argv", ["profile_step", str(engine), *options])
    profile_step.main()
    values = json.loads((tmp_path / "profile.json").read_text())
    loops = [name for name in values["times"] if name.startswith("reading")]
    assert set(values["times"]) - set(loops) == {"step", "head", *profile_step.PROJECTIONS}
    assert len(loops) == 8
    assert values["floor_ms"] == min(values["times"][name]["ms"] for name in loops)
    kinds = ("step", "head", *profile_step.PROJECTIONS)
    step, *products = (values["times"][name]["ms"] for name in kinds)
    assert values["rest_ms"] == pytest.approx(step - sum(products))
    assert values["step_to_floor"] == pytest.approx(values["times"]["step"]["ms"] / values["floor_ms"])
    # Blocks of 34 bytes for 32 weights, float32 norms, one row of the embedding, and 32 keys and values.
    matrices = 3 * (128 * 64 + 64 * 64 + 192 * 64 + 64 * 96) + 128 * 64
    assert values["step_bytes"] == (matrices + 64) * 34 // 32 + 7 * 64 * 4 + 3 * 2 * 2 * 32 * 16 * 4
