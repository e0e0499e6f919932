"""The command line's contract: exit codes, one-line errors, and light imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.command_line import run_in_process, run_trtstream
from trtstream import __version__


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "llama-rope-dynamic")


def test_help_imports_nothing_heavy() -> None:
    heavy = "torch, transformers, tritonclient, numpy, matplotlib, rich.console"
    code = f"""
import sys
from click.testing import CliRunner
from trtstream.cli import cli
result = CliRunner().invoke(cli, ["--help"])
assert result.exit_code == 0 and "quickstart" in result.output, result.output
print([name for name in "{heavy}".split(", ") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command", ["build", "inspect", "package", "serve", "smoke", "bench", "chat", "sessions", "quickstart"]
)
def test_every_command_has_help(command: str) -> None:
    result = run_in_process(command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Usage:")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-attention-window", 5000], "beyond the checkpoint's context of 4096, and its dynamic RoPE"),
        (["--max-attention-window", 5000, "--force"], "beyond the checkpoint's context of 4096, and its dynamic RoPE"),
        (["--max-attention-window", 4], "no room for recent tokens; use a larger window or fewer sinks"),
        (
            ["--sink-token-length", 8, "--max-sink-token-length", 4],
            "max_sink_token_length is 4, below sink_token_length",
        ),
        (["--sink-token-length", -1], "sink_token_length is -1; it must be 0 or more"),
        (["--max-batch-size", 0], "max_batch_size is 0; it must be at least 1"),
        (["--max-attention-window", 0], "max_attention_window is 0; it must be at least 1"),
        (["--sink-token", 128], "--sink-token 128 is outside the vocabulary of 128"),
        (["--sink-token", 1, "--sink-token-length", 0], "--sink-token needs --sink-token-length 1 or more"),
    ],
)
def test_build_refuses(options: list[object], message: str, checkpoint: Path, tmp_path: Path) -> None:
    result = run_in_process("build", checkpoint, "--output", tmp_path / "engine", *options)
    assert result.returncode == 1
    assert result.stderr.startswith("trtstream: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.process
def test_a_window_beyond_the_trained_context_needs_force(tmp_path: Path) -> None:
    short = write_checkpoint(tmp_path / "checkpoint", "llama-gqa", max_position_embeddings=64)
    refused = run_in_process("build", short, "--output", tmp_path / "engine", "--max-attention-window", 100)
    assert refused.returncode == 1
    assert "window 100 is beyond the checkpoint's trained context of 64; use at most 64, or --force" in refused.stderr
    forced = run_trtstream("build", short, "--output", tmp_path / "engine", "--max-attention-window", 100, "--force")
    assert forced.returncode == 0, forced.stderr
    again = run_in_process("build", short, "--output", tmp_path / "engine")
    assert again.returncode == 1
    assert "exists already; remove it or choose another --output" in again.stderr


def test_no_sinks_is_warned_of(checkpoint: Path, tmp_path: Path) -> None:
    result = run_in_process("build", checkpoint, "--output", tmp_path / "engine", "--sink-token-length", 0)
    assert result.returncode == 0
    assert "warning: without sink tokens quality collapses" in result.stderr


def test_without_a_compiler_the_build_says_so(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = run_in_process("build", checkpoint, "--output", tmp_path / "engine")
    assert result.returncode == 1
    assert "found no no-such-compiler; install g++ or set CXX" in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.process
def test_a_full_disk_is_one_line_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """A limit on the size of files, in KB, replaces a full disk: the same write (of weights) fails in the same way."""
    command = f"ulimit -f 300; exec {sys.executable} -m trtstream build {checkpoint} --output {tmp_path}/engine"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"trtstream: cannot write {tmp_path}/engine: File too large"
    assert "Traceback" not in result.stderr
    assert not any(tmp_path.iterdir())


def test_bad_usage_exits_2_and_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert run_trtstream("build").returncode == 2
    assert run_trtstream("no-such-command").returncode == 2
    assert "Traceback" not in run_trtstream("inspect", tmp_path).stderr
    assert "Traceback" in run_trtstream("--debug", "inspect", tmp_path).stderr


@pytest.mark.parametrize(("typed", "meant"), [("biuld", "build"), ("quick-start", "quickstart"), ("evaluate", "eval")])
def test_a_mistyped_command_gets_a_suggestion(typed: str, meant: str) -> None:
    result = run_in_process(typed)
    assert result.returncode == 2
    assert f"No such command {typed!r}. Did you mean {meant!r}?" in result.stderr


@pytest.mark.parametrize(
    ("line", "completions"), [("trtstream b", ["build", "bench"]), ("trtstream qu", ["quickstart"])]
)
def test_the_shell_completes_commands(line: str, completions: list[str]) -> None:
    variables = {"_TRTSTREAM_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": "1"}
    trtstream = Path(sys.executable).with_name("trtstream")
    done = subprocess.run([trtstream], env={**os.environ, **variables}, capture_output=True, text=True)
    assert [answer.partition(",")[2] for answer in done.stdout.splitlines()] == completions


def test_version() -> None:
    assert run_in_process("--version").stdout == f"trtstream, version {__version__}\n"


def test_inspect_as_json(checkpoint: Path, tmp_path: Path) -> None:
    import json

    run_in_process(
        "build", checkpoint, "--output", tmp_path / "engine", "--max-attention-window", 64, "--dtype", "bfloat16"
    )
    shown = json.loads(run_in_process("inspect", tmp_path / "engine", "--json").stdout)
    assert shown["build_config"]["max_attention_window"] == 64
    # 2 (keys, values) x 3 layers x 2 KV heads x 64 slots x 16 dimensions x 2 bytes
    assert shown["memory"]["kv_cache_bytes_per_session"] == 2 * 3 * 2 * 64 * 16 * 2


def test_a_path_of_another_kind_is_named(checkpoint: Path, tmp_path: Path) -> None:
    engine, repository = tmp_path / "engine", tmp_path / "repository"
    assert run_in_process("build", checkpoint, "--output", engine).returncode == 0
    assert run_in_process("package", engine, "--output", repository).returncode == 0
    gguf = tmp_path / "model.gguf"
    gguf.touch()
    packaged = repository / "trtstream" / "1" / "engine"
    a_checkpoint = "is not an engine: it is a checkpoint; make an engine of it with `trtstream build`"
    expected = {
        ("build", engine): "is an engine, built already; give the checkpoint that it was built from",
        ("build", repository): "is a Triton model repository; give a checkpoint, or `trtstream serve` it",
        ("inspect", repository): f"is not an engine: it is a Triton model repository, and its engine is {packaged}",
        ("inspect", checkpoint): a_checkpoint,
        ("inspect", gguf): a_checkpoint,
        ("inspect", tmp_path): "is not an engine: it has no config.json; make one with `trtstream build`",
    }
    for (command, path), message in expected.items():
        output = ["--output", tmp_path / "new"] if command == "build" else []
        refused = run_in_process(command, path, *output)
        assert (refused.returncode, refused.stderr) == (1, f"trtstream: {path} {message}\n")
    assert not (tmp_path / "new").exists()
