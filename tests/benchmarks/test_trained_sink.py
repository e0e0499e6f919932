"""`benchmarks.trained_sink`: both models of a pair learn from the same tokens, and an interruption loses no model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.trained_sink import __main__ as trained_sink
from benchmarks.trained_sink.training import NOT_PREDICTED, SINK, _with_sink
from trtstream.samples.gpl import GPL


def test_a_sink_changes_what_is_seen_and_not_what_is_predicted() -> None:
    samples = torch.tensor([[5, 6, 7], [8, 9, 4]])
    inputs, labels = _with_sink(samples)
    assert inputs.tolist() == [[SINK, 5, 6, 7], [SINK, 8, 9, 4]]
    # A label is predicted by the tokens before it; without a sink nothing is before a sample's first token.
    assert labels.tolist() == [[NOT_PREDICTED, NOT_PREDICTED, 6, 7], [NOT_PREDICTED, NOT_PREDICTED, 9, 4]]


@pytest.mark.slow
def test_a_pair_is_trained_measured_and_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["trained_sink", "--size", "tiny", "--seeds", "1", "--text", str(GPL), "--work", str(tmp_path)]
    found = []
    for number in range(2):
        output = tmp_path / f"{number}.json"
        monkeypatch.setattr(sys, "argv", [*arguments, "--json", str(output), "--plot", str(tmp_path / "plot.png")])
        trained_sink.main()
        found.append(json.loads(output.read_text())["models"])
        weights = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("tiny-*/model.safetensors"))]
        found.append(weights)
    assert found[0] == found[2]
    assert found[1] == found[3]
    usual, with_sink = found[0]
    assert all(1 < perplexity < 512 for model in (usual, with_sink) for perplexity in model["perplexity"].values())
    assert usual["perplexity"]["4"] != with_sink["perplexity"]["4"]
    assert len(with_sink["attention_to_first"]) == 2
    assert (tmp_path / "plot.png").stat().st_size > 1000
