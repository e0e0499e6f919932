"""``trtstream serve`` as a process: its refusals, how it stops, and that it leaves nothing behind."""

from __future__ import annotations

import compileall
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.checkpoints import write_checkpoint
from tests.command_line import run_trtstream
from tests.deploy.server import Server, serve_process
from tests.deploy.serving.processes import family, of_kind, wait_for_death
from tests.deploy.serving.streams import Stream, ids, post, reason
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.cuda import build_cuda_engine
from trtstream.cli import cli
from trtstream.deploy.serving.package import package_engine
from trtstream.deploy.serving.triton_metrics import PUBLISH_SECONDS
from trtstream.deploy.serving.tritonserver import find_tritonserver
from trtstream.errors import TrtstreamError
from trtstream.settings import BuildConfig

pytestmark = pytest.mark.triton

Start = Callable[..., Server]


def refused(*arguments: object) -> tuple[int, str]:
    """Exit code and the last line of stderr of a ``serve`` that must fail."""
    done = subprocess.run(
        [sys.executable, "-m", "trtstream", "serve", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.strip().splitlines()[-1]


def leftovers(process_ids: set[int]) -> list[Path]:
    """The temporary folder and the shared memory that are named in Triton's command line."""
    arguments = b"\0".join(Path(f"/proc/{one}/cmdline").read_bytes() for one in process_ids).decode()
    work = re.search(r"--backend-directory=(\S+?)/backends", arguments)
    memory = re.search(r"shm-region-prefix-name=([\w-]+)", arguments)
    found = [Path(work[1]), *Path("/dev/shm").glob(f"{memory[1]}*")]
    assert len(found) == 2
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_engine_for_a_gpu_is_refused_before_triton_starts(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", "llama-gqa"))
    settings = BuildConfig(max_batch_size=1, max_attention_window=64, dtype="bfloat16")
    build_cuda_engine(checkpoint, settings, tmp_path / "engine", lambda done, total: None)
    code, line = refused(tmp_path / "engine", "--grpc-port", 0, "--http-port", 0, "--metrics-port", 0)
    assert code == 1
    assert re.match(r"trtstream: .*engine was built for target 'cuda' and cannot run here: torch", line)


@pytest.mark.slow
def test_the_limits_of_a_turn_are_options(start: Start) -> None:
    server = start("--max-tokens-limit", "5", "--turn-timeout", "2.5", "--max-itl-ms", "20")
    stream = Stream(server.grpc_url)
    assert len(ids(stream.ask(text_input="a", ignore_eos=True))) == 5  # the default is not refused
    with pytest.raises(InferenceServerException, match="from 1 to 5"):
        stream.ask(text_input="a", max_tokens=6)
    with pytest.raises(InferenceServerException, match=r"did not end within the 2\.5 s that this server gives a turn"):
        stream.ask(input_ids=np.ones(1_000_000, np.int32))
    stream.close()


def test_sigterm_lets_turns_end_and_ignores_idle_streams(start: Start) -> None:
    server = start("--drain-timeout", "200")  # the default would do on a quiet machine
    children = family(server.process.pid)
    assert len(children) >= 2  # Triton and the Python backend
    idle, busy = Stream(server.grpc_url), Stream(server.grpc_url)
    idle.ask(text_input="a", max_tokens=1)
    busy.send(text_input="a", max_tokens=500, ignore_eos=True, stream=True)
    busy.next()
    server.process.send_signal(signal.SIGTERM)
    rest = busy.all()
    assert reason(rest[-1]) == "length"
    assert len(ids(*rest)) == 499
    assert server.process.wait(60) == 0, server.log.read_text()
    wait_for_death(children)
    assert server.process.stdout.read() == ""  # the ready line was all
    for stream in (idle, busy):
        stream.client.close()


def test_new_turns_are_refused_while_draining_and_late_ones_cut(start: Start) -> None:
    server = start("--drain-timeout", "4")
    busy, late = Stream(server.grpc_url), Stream(server.grpc_url)
    busy.send(text_input="a", max_tokens=1_000_000, ignore_eos=True)
    late.ask(text_input="a", max_tokens=1)
    server.process.send_signal(signal.SIGINT)
    while "draining" not in server.log.read_text():
        time.sleep(0.01)
    time.sleep(0.2)
    with pytest.raises(InferenceServerException, match="shutting down"):
        late.ask(text_input="a", max_tokens=1)
    with pytest.raises(InferenceServerException, match="closed before the turn ended"):
        busy.next()
    assert server.process.wait(60) == 1
    assert "cut short" in server.log.read_text().splitlines()[-1]
    for stream in (busy, late):
        stream.close()


def test_a_server_takes_turns_while_it_is_no_longer_ready(start: Start) -> None:
    server = start("--drain-delay", "4", "--openai-port", "0")
    stream = Stream(server.grpc_url)
    stream.ask(text_input="a", max_tokens=1)
    server.process.send_signal(signal.SIGTERM)
    while (ready := status(f"http://{server.http_url}/ready"))[0] == 200:
        time.sleep(0.01)
    assert ready == (503, {"ready": False, "state": "leaving"})
    stream.ask(text_input="a", max_tokens=1)
    asked = {"model": "trtstream", "prompt": "a", "max_tokens": 1}
    assert status(f"http://{server.openai_url}/v1/completions", asked)[0] == 200
    assert status(f"http://{server.openai_url}/health") == (503, {"ready": False, "state": "leaving"})
    stream.close()
    assert server.process.wait(60) == 0, server.log.read_text()
    assert "SIGTERM: draining" in server.log.read_text()


def status(url: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """(The status, the JSON) that a URL answers with."""
    try:
        with urllib.request.urlopen(url, None if body is None else json.dumps(body).encode(), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_second_signal_kills_at_once_and_leaves_nothing(start: Start) -> None:
    server = start("--drain-timeout", "600")
    children = family(server.process.pid)
    left = leftovers(children)
    busy = Stream(server.grpc_url)
    busy.send(text_input="a", max_tokens=1_000_000, ignore_eos=True, stream=True)
    busy.next()
    server.process.send_signal(signal.SIGINT)
    while "draining" not in server.log.read_text():
        time.sleep(0.01)
    assert server.stop(signal.SIGINT) == 1
    wait_for_death(children)
    assert not [path for path in left if path.exists()]
    busy.client.close()


@pytest.mark.slow
def test_a_model_that_waits_for_a_dead_triton_ends(start: Start) -> None:
    """An update of a metric waits with Python's lock held, so that no thread of the model's can end it."""
    server = start()
    children = family(server.process.pid)
    os.kill(of_kind(server.process.pid, "tritonserver"), signal.SIGSTOP)
    time.sleep(2 * PUBLISH_SECONDS)
    server.stop(signal.SIGKILL)
    wait_for_death(children)


@pytest.mark.slow
def test_a_repository_can_be_moved(start: Start, engine: Path, tmp_path: Path) -> None:
    package_engine(engine, tmp_path / "here", "first")
    package_engine(engine, tmp_path / "here", "second")
    there = (tmp_path / "here").rename(tmp_path / "there")
    compileall.compile_dir(there, quiet=1)  # as a first start might: Triton must not mind
    server = start(source=there)
    assert server.models == ["first", "second"]
    for model in server.models:
        with urllib.request.urlopen(f"http://{server.http_url}/v2/models/{model}/ready", timeout=10) as response:
            assert response.status == 200
    assert server.stop() == 0, server.log.read_text()


def test_tls(start: Start, tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ("-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert)
    subprocess.run(["openssl", *request.split(), *names], check=True, capture_output=True)
    server = start("--host", "0.0.0.0", "--tls-cert", str(cert), "--tls-key", str(key), "--openai-port", "0")
    assert server.grpc_url.startswith("0.0.0.0:")
    assert server.http_url.startswith("0.0.0.0:")
    assert server.metrics_url.startswith("127.0.0.1:")
    https, trust = server.http_url.replace("0.0.0.0", "localhost"), ssl.create_default_context(cafile=cert)
    with urllib.request.urlopen(f"https://{https}/ready", timeout=10, context=trust) as answer:
        assert json.load(answer) == {"ready": True, "state": "ready"}
    with pytest.raises(ConnectionError):
        urllib.request.urlopen(f"http://{https}/ready", timeout=10)
    asked = urllib.request.Request(
        f"https://localhost:{(server.openai_url or '').rpartition(':')[2]}/v1/responses",
        b'{"model": "trtstream", "input": "Hello", "max_output_tokens": 1}',
    )
    with urllib.request.urlopen(asked, timeout=10, context=trust) as answer:
        assert json.load(answer)["usage"]["output_tokens"] == 1
    url = f"localhost:{server.grpc_url.rpartition(':')[2]}"
    client = InferenceServerClient(url, ssl=True, root_certificates=str(cert))
    assert client.is_model_ready("trtstream")
    stream = Stream(url, client)
    with pytest.raises(InferenceServerException, match="numeric sequence ids are refused"):
        stream.ask({"sequence_id": 5}, text_input="a", max_tokens=1)
    with pytest.raises(InferenceServerException, match="5 characters"):
        stream.ask(text_input="a", max_tokens=1, session_id="short")
    assert ids(stream.ask(text_input="a", max_tokens=1, session_id="0123456789abcdef"))
    stream.close()
    assert run_trtstream("smoke", "--url", url, "--tls-ca", cert).returncode == 0
    assert run_trtstream("smoke", "--url", url).returncode == 1
    with pytest.raises(InferenceServerException), InferenceServerClient(url) as plain:
        plain.is_server_live(client_timeout=3)


def test_insecure_serves_everybody_but_guards_sessions(open_server: Server) -> None:
    urls = open_server.grpc_url, open_server.http_url, open_server.metrics_url
    assert [url.rpartition(":")[0] for url in urls] == ["0.0.0.0"] * 3
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(open_server, "generate", {"text_input": "a", "sequence_id": 5})
    assert "numeric sequence ids are refused" in caught.value.read().decode()


def test_other_hosts_need_tls_or_consent(engine: Path) -> None:
    code, line = refused(engine, "--host", "0.0.0.0")
    assert code == 2
    assert "--tls-cert and --tls-key, or --insecure" in line


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--tls-cert", __file__], "go together"),
        (["--host", "no such host"], "no such host"),
        (["--grpc-port", "65536"], "--grpc-port"),
    ],
)
def test_bad_usage(engine: Path, options: list[str], named: str) -> None:
    code, line = refused(engine, *options)
    assert code == 2
    assert named in line


def test_a_port_in_use(engine: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        code, line = refused(engine, "--grpc-port", 0, "--http-port", port, "--metrics-port", 0)
    assert code == 1
    assert line == f"trtstream: --http-port {port} on 127.0.0.1 cannot be used (Address already in use); choose another"


def test_two_options_cannot_have_one_port(engine: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, line = refused(engine, "--grpc-port", port, "--http-port", port, "--metrics-port", 0)
    assert code == 1
    assert f"--http-port {port}" in line


def test_what_cannot_be_served(tmp_path: Path) -> None:
    ports = ("--grpc-port", 0, "--http-port", 0, "--metrics-port", 0)
    code, line = refused(tmp_path / "nothing", *ports)
    assert (code, line) == (1, f"trtstream: {tmp_path}/nothing is not a folder; give an engine or a model repository")
    code, line = refused(tmp_path, *ports)
    assert (code, line) == (
        1,
        f"trtstream: {tmp_path} is neither an engine nor a model repository; see `trtstream package`",
    )
    (tmp_path / "repository" / "model" / "1").mkdir(parents=True)
    (tmp_path / "repository" / "model" / "config.pbtxt").touch()
    code, line = refused(tmp_path / "repository" / "model", *ports)
    assert code == 1
    assert line.endswith(f"model is a model and not a repository of models; give {tmp_path}/repository")


def test_a_damaged_engine_is_reported_in_one_line(engine: Path, tmp_path: Path) -> None:
    model = package_engine(shutil.copytree(engine, tmp_path / "engine"), tmp_path / "repository")
    weights = model / "1" / "engine" / "rank0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    log = tmp_path / "log"
    with serve_process(tmp_path / "repository", log) as process:
        assert process.wait(60) == 1
        assert process.stdout.read() == ""
    lines = log.read_text().splitlines()
    assert re.fullmatch(r"trtstream: .*rank0.safetensors is damaged .*; rebuild the engine", lines[-1])
    assert len(lines) == 2  # and that it was starting


def test_a_stop_before_it_is_ready(engine: Path, tmp_path: Path) -> None:
    with serve_process(engine, tmp_path / "log") as process:
        while "starting" not in (tmp_path / "log").read_text():
            time.sleep(0.01)
        children = family(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout.read() == ""
    wait_for_death(children)


def test_no_triton_anywhere(monkeypatch: pytest.MonkeyPatch, engine: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pytriton", None)
    result = CliRunner().invoke(cli, ["serve", str(engine), "--grpc-port=0", "--http-port=0", "--metrics-port=0"])
    assert isinstance(result.exception, TrtstreamError)
    assert "pip install 'trtstream[server]'" in str(result.exception)


def test_no_shared_python_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {"INSTSONAME": "libpython3.11.a", "LIBDIR": str(tmp_path), "MULTIARCH": "x86_64-linux-gnu"}
    monkeypatch.setattr(sysconfig, "get_config_var", found.get)
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    major_minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(TrtstreamError, match=rf"needs libpython{major_minor}\.so.* apt install libpython{major_minor}"):
        find_tritonserver(tmp_path)


def test_a_temporary_folder_with_a_long_path(engine: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with serve_process(engine, tmp_path / "log", TMPDIR=str(deep)) as process:
        assert process.wait(30) == 1
    assert "set TMPDIR to a shorter path" in (tmp_path / "log").read_text()
    assert not list(deep.iterdir())


def test_a_triton_on_path_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "tritonserver"
    binary.write_text("#!/bin/sh\nexit 1\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = find_tritonserver(tmp_path)
    assert (found.binary, found.backends) == (binary, None)
