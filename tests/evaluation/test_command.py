"""``trtstream eval`` as its users run it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.checkpoints import write_checkpoint
from tests.command_line import run_trtstream
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.cpu import build_cpu_engine
from trtstream.errors import TrtstreamError
from trtstream.evaluation.command import evaluate
from trtstream.samples.gpl import GPL
from trtstream.settings import BuildConfig


def run(*arguments: object) -> Result:
    """Run eval in this process, which is quicker; the error that `main` would print is the result's exception."""
    return CliRunner().invoke(evaluate, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def engine(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "engine"
    build = BuildConfig(max_batch_size=1, max_attention_window=32, max_sink_token_length=8)
    build_cpu_engine(open_checkpoint(checkpoint), build, folder, lambda done, total: None)
    return folder


@pytest.mark.slow
def test_smollm2_by_the_papers_own_code(smollm2_gguf: Path, tmp_path: Path) -> None:
    """mit-han-lab/streaming-llm gives 21.1092; without sink tokens quality collapses."""
    outputs = ("--json", tmp_path / "r.json", "--plot", tmp_path / "r.png", "--keep", tmp_path / "losses")
    sizes = ("--tokens", 699, "--max-attention-window", 128)
    done = run_trtstream("eval", smollm2_gguf, "--text", GPL, *sizes, "--method", "streaming,window", *outputs)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    methods = report["methods"]
    assert "perplexity" not in report
    assert methods["streaming"]["perplexity"] == pytest.approx(21.1092, abs=0.002)
    assert methods["window"]["perplexity"] > 1.2 * methods["streaming"]["perplexity"]
    losses = np.fromfile(tmp_path / "losses" / "streaming.f32", dtype="<f4")
    assert methods["streaming"]["perplexity"] == pytest.approx(np.exp(losses.astype(float).mean()))
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert "21.109" in done.stdout
    assert "streaming, tokens: 700 of 700" in done.stderr


def test_an_engine_streams_in_its_own_window(engine: Path, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    """4 sinks and a ring of 24: the engine has room for 8 sinks, which the checkpoint's run has no use for."""
    own = run(engine, "--text", text, "--tokens", 2500, "--json", tmp_path / "own.json")
    assert own.exit_code == 0, own.output
    same = ("--max-attention-window", 28, "--sink-token-length", 4)
    run(checkpoint, "--text", text, "--tokens", 2500, *same, "--json", tmp_path / "same.json")
    reports = [json.loads((tmp_path / name).read_text()) for name in ("own.json", "same.json")]
    assert reports[0]["perplexity"] == pytest.approx(reports[1]["perplexity"], rel=1e-5)
    assert reports[0]["methods"]["streaming"]["max_attention_window"] == 28
    assert run(engine, "--text", text, "--tokens", 10, *same).exit_code == 0


def test_sweeps(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    sweep = ("--sweep-sinks", "0,2", "--sweep-window", "16,32", "--tokens", 300)
    done = run(checkpoint, "--text", text, *sweep, "--json", tmp_path / "r.json", "--plot", tmp_path / "r.png")
    assert done.exit_code == 0, done.output
    found = {
        (r["sink_token_length"], r["max_attention_window"]): r["perplexity"]
        for r in json.loads((tmp_path / "r.json").read_text())["sweep"]
    }
    assert set(found) == {(0, 16), (2, 16), (0, 32), (2, 32)}
    assert len(set(found.values())) == 4
    one = ("--sink-token-length", 2, "--max-attention-window", 16, "--tokens", 300, "--json", tmp_path / "one.json")
    run(checkpoint, "--text", text, *one)
    assert json.loads((tmp_path / "one.json").read_text())["perplexity"] == found[2, 16]


def test_losses_are_not_overwritten(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    arguments = (checkpoint, "--text", text, "--tokens", 100, "--keep", tmp_path / "losses")
    first, second, third = run(*arguments), run(*arguments), run(*arguments, "--resume")
    assert (first.exit_code, second.exit_code, third.exit_code) == (0, 1, 0)
    assert "holds a run of streaming already; continue with --resume" in str(second.exception)
    assert (tmp_path / "losses" / "streaming.f32").stat().st_size == 400


def test_recompute_says_what_it_skips(checkpoint: Path, text: Path) -> None:
    done = run(
        checkpoint,
        "--text",
        text,
        "--method",
        "recompute",
        "--every",
        50,
        "--tokens",
        500,
        "--max-attention-window",
        16,
    )
    assert "10 (every 50)" in done.stdout


def test_a_sampled_recompute_is_compared_at_its_positions(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    methods = ("--method", "streaming,window,recompute", "--every", 50, "--tokens", 2500, "--max-attention-window", 16)
    outputs = ("--keep", tmp_path, "--json", tmp_path / "r.json", "--plot", tmp_path / "r.png")
    done = run(checkpoint, "--text", text, *methods, *outputs)
    assert done.exit_code == 0, done.output
    assert "50th" in done.stdout
    assert done.stderr.count("recompute, tokens:") > 5  # the slow one says how far it is
    for method, report in json.loads((tmp_path / "r.json").read_text())["methods"].items():
        losses = np.fromfile(tmp_path / f"{method}.f32", dtype="<f4").astype(float)
        sampled = losses if method == "recompute" else losses[49::50]  # the first is token 1's
        assert len(sampled) == 50
        assert report["loss_at_sampled"] == pytest.approx(sampled.mean())
        assert report["perplexity_at_sampled"] == pytest.approx(np.exp(sampled.mean()))
        assert f"{report['perplexity_at_sampled']:.4f}" in done.stdout
        assert (report["loss"] == report["loss_at_sampled"]) == (method == "recompute")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--tokens", 5000), r"has 5000 tokens, and the first is not predicted; use --tokens 4999 or less"),
        (("--method", "dense"), r"dense attention over 4999 tokens is beyond the checkpoint's trained context of 4096"),
        (("--max-attention-window", 5000), r"beyond the checkpoint's trained context of 4096"),
        (("--max-attention-window", 4, "--tokens", 100), r"no room for recent tokens"),
        (("--sweep-window", "4096,100000"), r"--max-attention-window 100000 is beyond"),
        (("--method", "dense", "--force", "--dtype", "float16"), r"--dtype is float16; the cpu target has float32"),
        (("--method", "recompute", "--every", 5000), r"--every 5000 leaves none of 4999 tokens to predict"),
        (("--recall", "20", "--max-attention-window", 5000), r"beyond the checkpoint's trained context of 4096"),
        (("--recall", "100000"), r"streams \d+ tokens, and the text has 5000; give a longer text"),
        (("--recall", "100000", "--with-recall"), r"streams \d+ tokens, and the text has 5000; give a longer text"),
    ],
)
def test_what_cannot_be_done(options: tuple[object, ...], reason: str, checkpoint: Path, text: Path) -> None:
    done = run(checkpoint, "--text", text, *options)
    assert isinstance(done.exception, TrtstreamError)
    assert done.exit_code == 1
    with pytest.raises(TrtstreamError, match=reason):
        raise done.exception


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--method", "window"), r"an engine evaluates as streaming only; give its checkpoint"),
        (("--sweep-sinks", "0,4"), r"an engine has its own window and cannot sweep others"),
        (
            ("--max-attention-window", 16),
            r"the engine sees 4 sink tokens in a window of 28, and no other",
        ),
        (("--dtype", "bfloat16"), r"--dtype is bfloat16 and .* was built for float32"),
    ],
)
def test_what_an_engine_cannot_do(options: tuple[object, ...], reason: str, engine: Path, text: Path) -> None:
    with pytest.raises(TrtstreamError, match=reason):
        raise run(engine, "--text", text, "--tokens", 100, *options).exception


def test_an_engine_cannot_judge_what_it_generates(engine: Path, text: Path) -> None:
    with pytest.raises(TrtstreamError, match="is judged by dense attention; give the engine's checkpoint"):
        raise run(engine, "--text", text, "--generate", 5).exception


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--method", "streamed"), "'streamed' is unknown; choose from streaming, window, dense, recompute"),
        (("--resume",), "--resume needs --keep FOLDER"),
        (("--every", 5), "--every is for --method recompute"),
        (("--sweep-sinks", "1,2", "--method", "dense"), "are for --method streaming"),
        (("--sweep-sinks", "one"), "'one' is not a list of numbers"),
        (("--sweep-sinks", "1", "--recall", "20"), "--recall cannot be combined with a sweep"),
        (("--recall", "0,20"), "is not a list of numbers from 1 on"),
        (("--generate", 9, "--tokens", 9), "--generate has methods, sinks and a window, and neither"),
        (("--json", "/no/such/folder/r.json"), "the folder /no/such/folder does not exist"),
    ],
)
def test_bad_usage(options: tuple[object, ...], reason: str, checkpoint: Path, text: Path) -> None:
    done = run(checkpoint, "--text", text, *options)
    assert done.exit_code == 2
    assert reason in done.stderr


def test_a_text_inside_the_window_is_warned_of(checkpoint: Path, text: Path) -> None:
    done = run(checkpoint, "--text", text, "--tokens", 500, "--max-attention-window", 501)
    assert done.exit_code == 0
    assert "warning: the text has 501 tokens, and none leaves a window of 501" in done.stderr


def test_a_checkpoint_without_a_tokenizer(text: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", "llama-gqa")
    with pytest.raises(TrtstreamError, match="has no tokenizer to read a text with"):
        raise run(tmp_path / "checkpoint", "--text", text).exception
