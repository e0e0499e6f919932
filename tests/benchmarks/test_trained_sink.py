"""`benchmarks.trained_sink`: both models of a pair learn from the same tokens, and an interruption changes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import float_weights
from benchmarks.trained_sink import __main__ as trained_sink
from benchmarks.trained_sink import training
from benchmarks.trained_sink.training import NOT_PREDICTED, SINK, Size, _with_sink, train_tokenizer, trained
from trtstream.samples.gpl import GPL


def test_a_sink_changes_what_is_seen_and_not_what_is_predicted() -> None:
    samples = torch.tensor([[5, 6, 7], [8, 9, 4]])
    inputs, labels = _with_sink(samples)
    assert inputs.tolist() == [[SINK, 5, 6, 7], [SINK, 8, 9, 4]]
    # A label is predicted by the tokens before it; without a sink nothing is before a sample's first token.
    assert labels.tolist() == [[NOT_PREDICTED, NOT_PREDICTED, 6, 7], [NOT_PREDICTED, NOT_PREDICTED, 9, 4]]


def test_training_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are those of a training that was never interrupted, and its state is deleted."""
    size = Size(1, 16, 2, 32, 300, 8, 4, tokens=20 * 32, learning_rate=3e-3)
    tokenizer = train_tokenizer(GPL, size.vocabulary, tmp_path / "tokenizer")
    ids = np.arange(1000, dtype=np.int32) % size.vocabulary

    def train(name: str) -> dict[str, torch.Tensor]:
        folder = trained(size, ids, has_sink=True, seed=3, tokenizer=tokenizer, folder=tmp_path / name)
        return load_file(folder / "model.safetensors")

    whole = train("whole")
    steps = 0

    def interrupt(step: int, of: int) -> float:
        nonlocal steps
        steps += 1
        if steps == 13:
            raise KeyboardInterrupt
        return share_of_rate(step, of)

    share_of_rate = training._share_of_rate
    monkeypatch.setattr(training, "_share_of_rate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train("interrupted")
    again = train("interrupted")
    assert steps == 13 + 8  # the 13th was interrupted, and is made again
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["interrupted", "tokenizer", "whole"]


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

    output = tmp_path / "float_weights.json"
    monkeypatch.setattr(sys, "argv", ["float_weights", str(tmp_path), "--json", str(output)])
    float_weights.main()
    (found_by_format,) = json.loads(output.read_text())["models"].values()
    exact = found_by_format.pop("float32")
    assert list(found_by_format) == ["bfloat16", "int8", "int4"]
    for perplexity in found_by_format.values():
        assert perplexity != exact
        assert perplexity == pytest.approx(exact, rel=0.05)


def test_without_trained_models_nothing_is_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["float_weights", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"has no model that benchmarks\.trained_sink trained; run it first"):
        float_weights.main()
