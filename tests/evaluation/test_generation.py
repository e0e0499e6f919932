"""``trtstream eval --generate``: the tokens that methods sample, and what the dense model says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from tests.engines import random_tokens, reference_logits
from trtstream.build.checkpoint import open_checkpoint
from trtstream.evaluation.command import evaluate
from trtstream.evaluation.engines import Subject, open_subject
from trtstream.evaluation.generation import judged_loss, sample
from trtstream.evaluation.runs import open_engine
from trtstream.evaluation.scoring import Run

PROMPT, COUNT, WINDOW = random_tokens(8), 40, 16


@pytest.fixture(scope="module")
def subject(checkpoint: Path) -> Subject:
    return open_subject(checkpoint, None)


def sampled(subject: Subject, method: str, sinks: int, window: int) -> list[int]:
    run = Run(method, method, sinks, window)
    return sample(run, open_engine(run, subject), PROMPT, COUNT)


def test_methods_differ_from_where_a_token_leaves_their_window(subject: Subject) -> None:
    """The prompt is fed first, so the token that is sampled after W tokens is the last that all agree on."""
    dense = sampled(subject, "dense", 0, len(PROMPT) + COUNT)
    assert dense[: len(PROMPT)] == PROMPT
    assert sampled(subject, "recompute", 0, len(PROMPT) + COUNT) == dense
    others = [sampled(subject, *run) for run in (("recompute", 0, WINDOW), ("window", 0, WINDOW), ("lru", 0, WINDOW))]
    others.append(sampled(subject, "streaming", 4, WINDOW))
    for ids in others:
        assert ids[: WINDOW + 1] == dense[: WINDOW + 1]
        assert len(ids) == len(PROMPT) + COUNT
    assert len({tuple(ids) for ids in (dense, *others)}) == 5


def test_the_loss_is_of_the_last_half_under_dense_attention(subject: Subject, checkpoint: Path) -> None:
    judge, ids = subject.engine(0, WINDOW), random_tokens(50)
    logits = reference_logits(open_checkpoint(checkpoint), ids[-WINDOW:], 0, WINDOW)
    losses = -logits[:-1].log_softmax(dim=-1).gather(1, torch.tensor(ids[1 - WINDOW :])[:, None])[:, 0]
    assert judged_loss(judge, ids, generated=40) == pytest.approx(float(losses[-8:].mean()), abs=1e-4)
    assert judged_loss(judge, ids, generated=3) == pytest.approx(float(losses[-3:].mean()), abs=1e-4)


def test_the_command(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    methods = ("--method", "streaming,lru", "--max-attention-window", WINDOW, "--generate", COUNT)
    outputs = ("--json", tmp_path / "r.json", "--plot", tmp_path / "r.png")
    done = CliRunner().invoke(evaluate, [str(x) for x in (checkpoint, "--text", text, *methods, *outputs)])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["tokens"], report["prompt_tokens"], list(report["methods"])) == (COUNT, 8, ["streaming", "lru"])
    for found in report["methods"].values():
        assert found["curve"][-1]["last"] == COUNT - 1
        assert [point["first"] for point in found["curve"]] == list(range(0, COUNT, 2))
        assert 0 < found["distinct"]["1"] <= found["distinct"]["4"] <= 1
        assert f" {found['distinct']['4']:.3f} " in done.stdout
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_generated_is_kept(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    """A later command generates what the folder lacks, and reports the rest as the first one did."""
    folder = tmp_path / "kept"

    def run(methods: str, *options: object) -> Result:
        sizes = ("--max-attention-window", WINDOW, "--keep", folder, "--json", tmp_path / "r.json")
        arguments = (checkpoint, "--text", text, "--method", methods, *sizes, *(options or ("--generate", COUNT)))
        return CliRunner().invoke(evaluate, [str(argument) for argument in arguments])

    def reported() -> dict[str, Any]:
        methods: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())["methods"]
        return methods

    assert run("streaming").exit_code == 0
    first, written = reported()["streaming"], (folder / "streaming.txt").read_text()
    assert text.read_text().startswith(written[: len(PROMPT)])
    assert "holds a run of streaming already; continue with --resume" in str(run("window,streaming").exception)

    resumed = run("window,streaming", "--generate", COUNT, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert reported()["streaming"] == first  # its seconds too
    assert (folder / "window.json").exists()
    another = run("streaming", "--generate", COUNT - 1, "--resume")
    assert str(another.exception).endswith("holds a run that differs in tokens; choose another --keep folder")
    (folder / "streaming.json").write_text("{")
    assert "remove it to generate its text again" in str(run("streaming", "--generate", COUNT, "--resume").exception)
