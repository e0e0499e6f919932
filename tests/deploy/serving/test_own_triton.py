"""A Triton that a user starts, without ``trtstream serve``, serves a packaged repository: as docs/service.md says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import trtstream
from tests.deploy.server import START_SECONDS, free_ports
from tests.deploy.serving.processes import family, wait_for_death
from tests.deploy.serving.streams import Stream, ids
from trtstream.deploy.client.client import Client
from trtstream.deploy.serving.package import package_engine
from trtstream.deploy.serving.tritonserver import find_tritonserver

pytestmark = pytest.mark.triton


@contextmanager
def tritonserver(
    repository: Path, python: Path, work: Path, grpc: int = 0, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """(The wheel's tritonserver serving ``repository``, its HTTP url). Its PATH begins with the folder ``python``."""
    installation = find_tritonserver(work)  # for the binary, and a copy of the wheel's backend that fits this Python
    free_grpc, http, metrics = free_ports(3)
    command = [
        installation.binary,
        f"--model-repository={repository}",
        f"--backend-directory={installation.backends}",
        f"--grpc-port={grpc or free_grpc}",
        f"--http-port={http}",
        f"--metrics-port={metrics}",
        *options,
    ]
    path = os.pathsep.join([str(python), "/usr/bin", "/bin"])
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(sys.path),  # of no use to the backend
        "LD_LIBRARY_PATH": installation.environment["LD_LIBRARY_PATH"],
    }
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=work, env=environment)
    try:
        yield process, f"http://127.0.0.1:{http}/v2"
    finally:
        process.kill()
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=10):
                return
        except OSError:
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    pytest.fail(log.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_plain_tritonserver_serves_a_packaged_repository(
    engine: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """And it leaves no process when it is stopped."""
    package_engine(engine, tmp_path / "model_repo")
    # These sources, if others are installed: the folder where Triton starts comes first on a model's path.
    (tmp_path / "trtstream").symlink_to(Path(trtstream.__file__).parent)
    (grpc,) = free_ports(1)
    headers = ("--grpc-header-forward-pattern=.*", "--http-header-forward-pattern=.*")  # it may pass them to models
    with tritonserver(tmp_path / "model_repo", Path(sys.executable).parent, tmp_path, grpc, *headers) as (process, url):
        wait_until_ready(process, url, tmp_path / "log")
        body = json.dumps({"text_input": "Hello", "max_tokens": 3, "ignore_eos": True}).encode()
        asked = urllib.request.Request(
            f"{url}/models/trtstream/generate", body, {"Traceparent": "00-0-0-01", "X-Session-Id": "größer"}
        )
        with urllib.request.urlopen(asked, timeout=START_SECONDS) as response:
            assert len(json.load(response)["output_ids"]) == 3
        with Client(f"127.0.0.1:{grpc}") as client:
            assert len(client.answer(text_input="a", session_id="größer", max_tokens=3, ignore_eos=True).token_ids) == 3
        children = family(process.pid)
        assert children
        stream = Stream(f"127.0.0.1:{grpc}")
        stream.send(text_input="a", max_tokens=500, ignore_eos=True, stream=True)
        stream.next()
        process.send_signal(number)
        if number == signal.SIGTERM:
            assert len(ids(*stream.all())) == 499
            stream.close()  # Triton waits for open streams, whatever its exit timeout
        process.wait(60)
        wait_for_death(children)
        stream.client.close()


def test_the_python_on_path_must_have_trtstream(engine: Path, tmp_path: Path) -> None:
    package_engine(engine, tmp_path / "model_repo")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    with tritonserver(tmp_path / "model_repo", tmp_path / "bare" / "bin", tmp_path) as (process, _):
        assert process.wait(START_SECONDS) != 0
    assert "ModuleNotFoundError" in (tmp_path / "log").read_text()
