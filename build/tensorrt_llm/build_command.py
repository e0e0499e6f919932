"""Runs upstream's ``trtllm-build`` on a converted checkpoint, and writes the same command as ``build.sh``."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

import click

from trtstream.build.tensorrt_llm.releases import Release, find_release
from trtstream.errors import TrtstreamError
from trtstream.progress import Progress
from trtstream.settings import BuildConfig, ModelConfig, TensorrtLlmOptions

SCRIPT = "build.sh"
CHECKPOINT = "checkpoint"
ENGINE = "engine"
VERSION_SECONDS = 60
TAIL_LINES = 200
PR_SET_PDEATHSIG = 1
ERROR_LINE = re.compile(r"^\w*(Error|Exception)\b|\[E\]|\berror\b", re.IGNORECASE)
BUILD_SH = """\
#!/bin/sh
# Makes {engine}/ of {checkpoint}/ with TensorRT-LLM {version}, on a GPU of the kind that will run it. In a container:
#   docker run --rm --gpus all -v "$PWD":/engine {container} sh /engine/{script}
# That image has this release: https://github.com/triton-inference-server/server/blob/main/docs/introduction/compatibility.md
set -e
cd "$(dirname "$0")"
rm -rf {engine}.new
{command}
mv {engine}.new {engine}
"""


def build_engine(
    folder: Path, model: ModelConfig, build: BuildConfig, release: Release, progress: Progress
) -> str | None:
    """Write ``folder/build.sh``, and run its command if this machine has trtllm-build of that release.

    ``folder`` holds ``checkpoint/`` in ``release``'s format; the engine goes to ``folder/engine``. ``progress`` counts
    ranks; trtllm-build's output goes to stderr. Returns the version that built it,
    or None if that is left to the user. Raises TrtstreamError if the build fails.
    """
    arguments = build_arguments(model, build, release)
    lines = " \\\n  ".join(shlex.join(pair) for pair in [("trtllm-build",), *_pairs(arguments, f"{ENGINE}.new")])
    script = BUILD_SH.format(
        engine=ENGINE,
        checkpoint=CHECKPOINT,
        version=release.name,
        container=release.container,
        script=SCRIPT,
        command=lines,
    )
    (folder / SCRIPT).write_text(script)
    (folder / SCRIPT).chmod(0o755)
    installed = find_trtllm_build()
    if installed is None:
        click.echo(
            f"trtllm-build is not on PATH: run {SCRIPT} in the engine's folder where it is, with a GPU", err=True
        )
        return None
    program, version = installed
    if find_release(version) != release:
        click.echo(
            f"the checkpoint is for TensorRT-LLM {release.name} and {program} is {version}: run {SCRIPT} where "
            f"{release.name} is",
            err=True,
        )
        return None
    _run(program, version, arguments, folder, TensorrtLlmOptions.of(build).ranks, progress)
    return version


def build_arguments(model: ModelConfig, build: BuildConfig, release: Release) -> dict[str, str]:
    """The options of trtllm-build and their values, without ``--output_dir``; paths are relative to the engine."""
    input_len = max_input_len(build)
    seq_len = max_seq_len(model, build)
    arguments = {
        "--checkpoint_dir": CHECKPOINT,
        "--max_batch_size": str(build.max_batch_size),
        "--max_input_len": str(input_len),
    }
    if release.version < (0, 12):
        arguments["--max_output_len"] = str(seq_len - input_len)
    else:
        arguments["--max_seq_len"] = str(seq_len)
    # A prompt goes through in one piece, together with one token of each other request: chunks need paged context FMHA.
    arguments["--max_num_tokens"] = str(max(build.max_num_tokens, input_len + build.max_batch_size))
    arguments |= {
        "--gpt_attention_plugin": build.dtype,
        "--gemm_plugin": build.dtype,
        "--context_fmha": "enable",
        "--use_paged_context_fmha": "disable",  # the attention plugin refuses sink tokens with it
    }
    if build.sink_token_length > 0:
        arguments["--streamingllm"] = "enable"
    return arguments


def max_input_len(build: BuildConfig) -> int:
    """The longest prompt in tokens: the window, as upstream attends densely while it feeds a prompt."""
    return build.max_attention_window


def max_seq_len(model: ModelConfig, build: BuildConfig) -> int:
    """The longest request in tokens, prompt and answer; by default the checkpoint's context, or twice the window."""
    asked = TensorrtLlmOptions.of(build).max_seq_len
    return max(model.max_position_embeddings, 2 * build.max_attention_window) if asked is None else asked


def find_trtllm_build() -> tuple[Path, str] | None:
    """trtllm-build on PATH and its version, or None. Importing tensorrt_llm would take 20 s, its metadata none."""
    found = shutil.which("trtllm-build")
    if found is None:
        return None
    with open(found, "rb") as script:
        first_line = script.readline().decode(errors="replace")
    interpreter = shlex.split(first_line[2:]) if first_line.startswith("#!") else []
    query = "from importlib.metadata import version; print(version('tensorrt_llm'))"
    try:
        done = subprocess.run(
            [*interpreter, "-c", query], capture_output=True, text=True, timeout=VERSION_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise TrtstreamError(
            f"cannot tell the version of {found} (its first line {first_line.strip()!r} should name the Python that "
            "has tensorrt_llm); reinstall it, or take it from PATH"
        ) from error
    return Path(found), done.stdout.strip()


def _pairs(arguments: dict[str, str], output: str) -> list[tuple[str, str]]:
    return [*arguments.items(), ("--output_dir", output)]


def _run(program: Path, version: str, arguments: dict[str, str], folder: Path, ranks: int, progress: Progress) -> None:
    """Run trtllm-build in ``folder``. However this function ends, trtllm-build and its workers end with it."""
    command = [str(program), *(part for pair in _pairs(arguments, ENGINE) for part in pair)]
    libc = ctypes.CDLL(None)
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # a process group, to be killed as one
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    assert process.stdout is not None  # it is a pipe
    try:
        progress(0, ranks)
        for line in process.stdout:
            tail.append(line.rstrip())
            sys.stderr.write(line)
            progress(len(_built_ranks(folder)), ranks)
        code = process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    built = len(_built_ranks(folder))
    if code != 0 or built != ranks:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        raise TrtstreamError(
            f"trtllm-build {version} {how} with {built} of {ranks} ranks built; its last error: {_last_error(tail)}"
        )
    progress(ranks, ranks)


def _built_ranks(folder: Path) -> list[Path]:
    return list((folder / ENGINE).glob("rank*.engine"))


def _last_error(lines: deque[str]) -> str:
    printed = [line for line in lines if line.strip()]
    errors = [line for line in printed if ERROR_LINE.search(line)]
    return (errors or printed or ["it printed nothing"])[-1].strip()
