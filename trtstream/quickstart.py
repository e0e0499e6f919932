"""``trtstream quickstart``: from nothing to a streaming service and back, one command after the other."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from trtstream.errors import TrtstreamError

FOLDER = Path("quickstart")
WINDOW, SINKS, MAX_SINKS = 512, 4, 64
CONVERSATION = (
    "The secret word is banana. Please repeat it.",
    "Which city is the capital of France?",
    "What is the secret word?",
)
AFTER_THE_KILL = "What is the secret word?"
STOP_SECONDS = 60


@click.command()
@click.option("--keep-running", is_flag=True, help="Leave the server running until Ctrl-C.")
def quickstart(keep_running: bool) -> None:
    """Build, package, serve and test SmolLM2-135M-Instruct, and leave the engine in ./quickstart.

    Each step is a command of its own and is shown before it runs. In the end all processes of the server are killed,
    and the conversation goes on with another one.
    """
    from trtstream.samples.smollm2 import fetch_smollm2

    # A supervisor's stop is an interrupt like any other: the server must not outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    checkpoint = fetch_smollm2()
    FOLDER.mkdir(exist_ok=True)
    engine, repository, figures = FOLDER / "engine", FOLDER / "model_repo", FOLDER / "bench.json"
    _build(checkpoint, engine)
    shutil.rmtree(repository, ignore_errors=True)
    _run("package", engine, "--output", repository)
    with _serving(repository) as (url, server):
        _run("smoke", "--url", url)
        plot = ("--plot", FOLDER / "bench.png") if importlib.util.find_spec("matplotlib") else ()
        size = ("--requests", 4, "--input-tokens", 64, "--output-tokens", 32)
        _run("bench", "--url", url, "--concurrency", "1,4", *size, "--json", figures, *plot)
        session_id = _converse(url, CONVERSATION)
        _kill(server)
    with _serving(repository) as (url, _):
        _converse(url, [AFTER_THE_KILL], session_id)
        _print_figures(figures)
        if keep_running:
            _show("chat", "--url", url)
            click.echo(f"serving on {url}: talk to it with the command above; Ctrl-C stops it", err=True)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()


def _build(checkpoint: Path, engine: Path) -> None:
    """Build the engine, unless the one that is there is what would be built."""
    from trtstream.engine_dir import read_engine, verify_files
    from trtstream.machine import cpu_flags
    from trtstream.settings import BuildConfig

    dtype = "bfloat16" if "avx512_bf16" in cpu_flags() else "float32"
    wanted = BuildConfig(
        max_attention_window=WINDOW, sink_token_length=SINKS, max_sink_token_length=MAX_SINKS, dtype=dtype
    )
    with contextlib.suppress(TrtstreamError):
        config = read_engine(engine)
        verify_files(engine, config)
        if config.build_config == wanted:
            click.echo(f"{engine} is up to date", err=True)
            return
    shutil.rmtree(engine, ignore_errors=True)
    options = {
        "--max-attention-window": WINDOW,
        "--max-sink-token-length": MAX_SINKS,
        "--sink-token-length": SINKS,
        "--dtype": dtype,
    }
    _run("build", checkpoint, "--output", engine, *(word for option in options.items() for word in option))


def _show(*words: object) -> list[str]:
    """Show a trtstream command line as a user would type it; returns its arguments."""
    arguments = [str(word) for word in words]
    click.secho(f"\n$ trtstream {shlex.join(arguments)}", err=True, bold=True)
    return arguments


def _run(*words: object) -> None:
    arguments = _show(*words)
    status = subprocess.run([sys.executable, "-m", "trtstream", *arguments]).returncode
    if status:
        raise TrtstreamError(f"quickstart stopped: `trtstream {shlex.join(arguments)}` failed with status {status}")


@contextlib.contextmanager
def _serving(repository: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server for the duration of a block: its gRPC url, and its process. It is stopped however the block ends."""
    log = FOLDER / "server.log"
    ports = ("--grpc-port", 0, "--http-port", 0, "--metrics-port", 0)
    arguments = _show("serve", repository, *ports, "--session-store", FOLDER / "sessions.db")
    with log.open("w") as output:
        # In a session of its own, so that Ctrl-C reaches this process alone, which stops the server in order.
        server = subprocess.Popen(
            [sys.executable, "-m", "trtstream", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        ready = next(iter(server.stdout or ()), "").strip()
        match = re.search(r"grpc=(\S+)", ready)
        if match is None:
            lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise TrtstreamError(f"the server did not start; {log} ends with: {lines[-1]}")
        click.echo(f"{ready} (its log is {log})", err=True)
        yield match[1], server
    finally:
        if server.poll() is None:
            click.echo("stopping the server", err=True)
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _kill(server: subprocess.Popen[str]) -> None:
    """SIGKILL all processes of the server at once."""
    processes = [*_family(server.pid)]
    click.secho(f"\n$ kill -9 {' '.join(map(str, processes))}", err=True, bold=True)
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    server.wait()
    click.echo("serve, Triton and the model's process are gone; the conversation is in the session store", err=True)


def _family(process: int) -> Iterator[int]:
    """The process and all its descendants."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _family(int(child))


def _converse(url: str, texts: Sequence[str], session_id: str | None = None) -> str:
    """Say the texts in a new session, or in one that goes on; returns its id."""
    from trtstream.deploy.client.client import Client
    from trtstream.deploy.client.conversation import Conversation

    _show("chat", "--url", url, *(() if session_id is None else ("--session", session_id)))
    with Client(url) as client:
        conversation = Conversation(client, session_id)
        for text in texts:
            click.secho(f"> {text}", bold=True)
            conversation.say(text)
        return conversation.session_id


def _print_figures(figures: Path) -> None:
    click.echo(f"\nSmolLM2-135M-Instruct on this machine, a window of {WINDOW} tokens:")
    for level in json.loads(figures.read_text())["levels"]:
        click.echo(
            f"  {level['concurrency']} at a time: first token after {level['time_to_first_token_ms']['p50']:.0f} ms, "
            f"then one every {level['inter_token_latency_ms']['p50']:.1f} ms; "
            f"{level['output_token_throughput']:.1f} tokens/s together"
        )
    click.echo(f"The engine, the model repository and the figures are in {FOLDER}/")
