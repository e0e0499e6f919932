"""benchmarks.compare on a tiny model: who takes part, what they predict, and what the document makes of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import report
from benchmarks.compare import __main__ as compare
from benchmarks.compare import findings, gguf_formats
from benchmarks.compare.entries import Entry
from benchmarks.compare.peer import Peer
from tests.checkpoints import write_checkpoint
from tests.command_line import run_in_process

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent.parent
WINDOW = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_checkpoint(folder / "checkpoint", "llama-gqa")
    return folder


@pytest.fixture(scope="module")
def done(folder: Path) -> subprocess.CompletedProcess[str]:
    options = ("--rounds", 2, "--max-attention-window", WINDOW, "--threads", 1)
    outputs = ("--json", folder / "compare.json", "--plot", folder / "compare.png")
    command = [sys.executable, "-m", "benchmarks.compare", folder / "checkpoint", *options, *outputs]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def values(folder: Path, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads((folder / "compare.json").read_text())


@pytest.mark.slow
def test_everyone_takes_part(values: dict[str, Any], folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    rows = {row["name"]: row for row in values["contestants"]}
    assert list(rows)[:2] == ["trtstream float32", "trtstream bfloat16"]
    assert rows["trtstream bfloat16, 8 sessions"]["sessions"] == 8
    openvino = ["OpenVINO GenAI, evicts", "OpenVINO GenAI, keeps all"]
    methods = ["recompute float32", "whole-cache rotation float32", "ExecuTorch's positions float32"]
    assert list(rows)[-6:] == [*methods, "llama.cpp", *openvino]
    for name in ("llama.cpp", *openvino):  # installed or not, they read no such checkpoint
        assert rows.pop(name)["note"].startswith("not measured: ")
    for name, row in rows.items():
        assert row["decode_ms_p10"] <= row["decode_ms"] <= row["decode_ms_p90"]
        assert row["to_floor"] == pytest.approx(row["decode_ms"] / row["floor_ms"])
        assert row["decode_steps"] == (4 if name.startswith("recompute") else 32)
        assert f"| {name} |" in done.stdout
    assert rows["trtstream float32"]["to_ours"] == 1
    floors = rows["trtstream float32"]["floor_ms"], rows["trtstream bfloat16"]["floor_ms"]
    assert floors[0] == pytest.approx(2 * floors[1])
    assert all(line in done.stdout for line in values["verdicts"])
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_they_predict_the_same(values: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in values["contestants"]}
    tolerance = 1e-4 * values["chunked_evaluation"]["logits_std"]
    rotation, recompute = rows["whole-cache rotation float32"], rows["recompute float32"]
    modulo = rows["ExecuTorch's positions float32"]
    assert modulo["below_window"]["largest_difference"] < tolerance
    assert modulo["past_window"]["largest_difference"] > 100 * tolerance, "its distances are wrong there"
    assert rotation["below_window"]["tokens"] == recompute["below_window"]["tokens"] == 8
    assert rotation["past_window"]["tokens"] == 16 + 32 + WINDOW // 2 - 1  # one position is counted in two parts
    for agreement in (rotation["below_window"], rotation["past_window"], recompute["below_window"]):
        assert agreement["largest_difference"] < tolerance
    assert recompute["past_window"]["tokens"] == 6
    assert recompute["past_window"]["largest_difference"] > 100 * tolerance, "it sees what the window has lost"
    assert values["chunked_evaluation"]["tokens_compared"] == rotation["past_window"]["tokens"]


@pytest.mark.slow
def test_the_document_takes_the_figures(
    values: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(report.RESULTS, tmp_path, dirs_exist_ok=True)
    shutil.copy(folder / "compare.json", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    text = report.document()
    assert all(row["name"] in text for row in values["contestants"])
    assert all(line in text for line in values["verdicts"])
    assert f"{values['chunked_evaluation']['times_as_fast']:.1f} times as fast" in text


def test_contestants_are_left_out_by_words_of_their_names() -> None:
    names = ("trtstream float32", "trtstream bfloat16", "trtstream bfloat16, 8 sessions", "recompute float32")
    entries = [Entry(name) for name in names]
    assert compare.without(entries, []) == entries
    assert compare.without(entries, ["float32", "sessions"]) == entries[1:2]


def test_a_random_model_has_other_sizes_and_the_same_formats(tmp_path: Path, folder: Path) -> None:
    from gguf import GGUFReader

    from benchmarks.compare.random_gguf import write_random_gguf
    from benchmarks.models import llama
    from tests.gguf_files import write_gguf
    from trtstream.build.checkpoint import open_checkpoint

    shipped = write_gguf(tmp_path / "shipped.gguf", folder / "checkpoint", "Q4_1")
    sizes = llama(1, 96, 160, 4, 6, 2, theta=1e4, tied=False)
    write_random_gguf(shipped, tmp_path / "random.gguf", sizes)
    before, after = open_checkpoint(shipped), open_checkpoint(tmp_path / "random.gguf")
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim"):
        assert getattr(after.model, name) == getattr(sizes, name)
    assert after.model.vocab_size == before.model.vocab_size
    weights = after.tensor("layers.3.down.weight").float()
    assert weights.shape == (96, 160)
    assert weights.std() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(weights, after.tensor("layers.1.down.weight").float())
    assert torch.equal(after.tensor("norm.weight").float(), torch.ones(96))
    kinds = [
        {tensor.name: tensor.tensor_type for tensor in GGUFReader(path).tensors}
        for path in (shipped, tmp_path / "random.gguf")
    ]
    assert kinds[0].items() <= kinds[1].items()
    assert len(kinds[1]) > len(kinds[0])


def test_a_winning_peer_is_named() -> None:
    def row(name: str, ms: float, prefill: float | None, sessions: int = 1) -> dict[str, Any]:
        return {"name": name, "decode_ms": ms, "prefill_tokens_per_s": prefill, "sessions": sessions}

    ours = [row("trtstream float32", 20.0, 100.0), row("trtstream bfloat16", 10.0, 200.0)]
    slower, faster = row("slower", 15.0, None), row("faster", 5.0, 300.0)
    assert findings.verdicts([*ours, slower, {"name": "absent", "sessions": 1, "note": "not measured"}], 2) == [
        "No peer that was measured decodes or prefills faster than trtstream bfloat16."
    ]
    decode, prefill = findings.verdicts([*ours, slower, faster], 2)
    assert decode == "faster wins in decoding: 5.0 ms a step against 10.0 ms of trtstream bfloat16, 2.00 times as fast."
    assert prefill == "faster wins in prefill: 300 tokens/s against 200 of trtstream bfloat16, 1.50 times as fast."
    batches = [row("trtstream bfloat16, 8 sessions", 20.0, None, 8), row("peer, 8 sessions", 10.0, None, 8)]
    (line,) = findings.verdicts([*ours, *batches], 3)
    assert line.startswith(
        "peer, 8 sessions wins in decoding: 10.0 ms a step against 20.0 ms of trtstream bfloat16, 8 "
    )


def test_a_contestant_that_dies_is_out_and_says_why() -> None:
    peer = Peer("types:SimpleNamespace", {"note": "does nothing"}, [], threads=1)
    assert peer.wait() == "does nothing"
    os.kill(peer._process.pid, signal.SIGILL)
    assert peer.ask("feed", 1, 1) is None
    assert peer.failure.startswith("its process met an instruction that it may not use")
    assert peer.ask("feed", 1, 1) is None
    peer.close()


def test_a_contestant_that_cannot_be_made_is_out_and_says_why() -> None:
    settings = {"kind": "rotation", "checkpoint": "/nowhere/model.gguf", "build": None}
    peer = Peer("benchmarks.compare.contestants:make", settings, [], threads=1)
    assert peer.wait() is None
    assert peer.failure.startswith("/nowhere/model.gguf does not exist")
    peer.close()


def test_formats_for_llama_cpp_hold_the_same_weights(tmp_path: Path, folder: Path) -> None:
    from tests.gguf_files import write_gguf
    from trtstream.build.checkpoint import open_checkpoint

    shipped = write_gguf(tmp_path / "shipped.gguf", folder / "checkpoint", "Q4_1")
    assert gguf_formats.shipped_format(shipped) == "Q4_1"
    gguf_formats.write_in_format(shipped, "F16", tmp_path / "other.gguf")
    before, after = open_checkpoint(shipped), open_checkpoint(tmp_path / "other.gguf")
    assert after.model == before.model
    name = "layers.0.down.weight"
    expected = before.tensor(name)
    assert (after.tensor(name).float() - expected).abs().max() <= expected.abs().max() * 2**-11
    untied = gguf_formats.weight_bytes(tmp_path / "other.gguf")
    assert untied == (tmp_path / "other.gguf").stat().st_size - header_and_embedding(tmp_path / "other.gguf")


def header_and_embedding(path: Path) -> int:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    padded = path.stat().st_size - sum(int(tensor.n_bytes) for tensor in reader.tensors)
    return padded + 128 * 64 * 2


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--leave-out", "recompute,vllm"), 1, "no contestant has 'vllm' in its name, so none is left out; there are"),
        (("--leave-out", "trtstream"), 1, "do not leave out all its formats"),
        (("--json", "/nowhere/compare.json"), 2, "the folder /nowhere does not exist"),
        (("--max-attention-window", 16, "--sink-token-length", 16), 1, "no room for recent tokens"),
        (("--text", __file__, "--json", "{folder}/x.json", "--plot", "{folder}/x.png"), 1, "has no tokenizer"),
    ],
)
def test_bad_usage_is_one_line(arguments: tuple[object, ...], status: int, message: str, folder: Path) -> None:
    words = (str(argument).format(folder=folder) for argument in arguments)
    done = run_in_process(folder / "checkpoint", *words, main=compare.main)
    assert done.returncode == status
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (folder / "x.json").exists()
