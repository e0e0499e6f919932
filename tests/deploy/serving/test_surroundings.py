"""Paths, folders, proxies, shared memory and other surroundings in which ``trtstream serve`` is started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.server import READY, Server, serve_process
from tests.deploy.serving.processes import family, wait_for_death
from tests.deploy.serving.streams import Stream
from trtstream.deploy.client.client import Client
from trtstream.deploy.contract import parse_error
from trtstream.deploy.serving.package import package_engine
from trtstream.deploy.serving.workplace import SHARED_MEMORY
from trtstream.errors import TrtstreamError

pytestmark = pytest.mark.triton

Start = Callable[..., Server]
ROOT = Path(__file__).parents[3]
PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


@pytest.mark.quick("repository")
@pytest.mark.parametrize("source", ["repository", "engine"])
def test_paths_of_all_kinds(start: Start, engine: Path, tmp_path: Path, source: str) -> None:
    """One path with all of the characters: each of them alone stops a backend that is given it."""
    folder = tmp_path / "größer 模型; $(and) 'more'"
    package_engine(engine, folder / "repository")
    shutil.copytree(engine, folder / "engine")
    assert start(source=folder / source).models == ["trtstream"]


@pytest.mark.parametrize("name", ["a space", "größer"])
def test_a_temporary_folder_that_the_backend_cannot_take(engine: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with serve_process(engine, tmp_path / "log", TMPDIR=str(folder)) as process:
        assert process.wait(30) == 1
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert f"the temporary folder {str(folder)!r} has a character" in line
    assert "set TMPDIR" in line


def test_a_model_folder_that_the_backend_cannot_take(engine: Path, tmp_path: Path) -> None:
    package_engine(engine, tmp_path / "repository").rename(tmp_path / "repository" / "my model")
    with serve_process(tmp_path / "repository", tmp_path / "log") as process:
        assert process.wait(30) == 1
    assert "the model 'my model' in" in (tmp_path / "log").read_text().splitlines()[-1]


@pytest.mark.slow
def test_modules_where_serve_is_started_are_not_the_models(engine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for module in ("queue", "json", "numpy"):
        (folder / f"{module}.py").write_text("raise SystemExit('the wrong module')")
    script = tmp_path / "bin" / "trtstream"  # as pip installs it; python -m puts this folder first itself
    script.parent.mkdir()
    script.write_text("from trtstream.__main__ import main\nmain()\n")
    command = [sys.executable, script, "serve", engine, *PORTS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=environment)
    with process:
        assert process.stdout
        ready = process.stdout.readline()
        process.terminate()
        assert process.wait(60) == 0
    assert READY.fullmatch(ready), (tmp_path / "log").read_text()


@pytest.mark.parametrize("variable", ["http_proxy", "grpc_proxy", "https_proxy"])
def test_a_proxy_is_not_for_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with Client(server.grpc_url) as client:
        assert client.health()["ready"]


def test_a_small_shared_memory_is_named_before_triton_starts(engine: Path, tmp_path: Path) -> None:
    mount = "mount -t tmpfs -o size=4m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("needs a mount of its own")
    serve = [sys.executable, "-m", "trtstream", "serve", str(engine), *PORTS]
    command = ["unshare", "-m", "sh", "-c", f'{mount}; exec "$@"', "sh", *serve]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "/dev/shm has 4.2 MB free and 1 model of Triton's Python backend needs 8.4 MB; free" in done.stderr
    full = f"{mount}; head -c 4m /dev/zero > /dev/shm/full"
    command = ["unshare", "-m", "sh", "-c", f'{full}; exec "$@"', "sh", *serve]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "/dev/shm" in done.stderr.splitlines()[-1]


def test_a_full_shared_memory_is_named_and_not_its_regions() -> None:
    code, message = parse_error(
        "Failed to increase the shared memory pool size for key 'trtstream-0-1234' to 9 bytes. Error: No space left"
    )
    assert code is None
    assert "/dev/shm is full" in message
    assert "trtstream-0" not in message


def memory_of(server: Server) -> tuple[Path, list[Path]]:
    """The temporary folder and the files in /dev/shm that a server's lock names."""
    for lock in SHARED_MEMORY.glob("trtstream-*-lock"):
        folder = Path(lock.read_text())
        arguments = b"".join(Path(f"/proc/{child}/cmdline").read_bytes() for child in family(server.process.pid))
        if os.fsencode(folder) in arguments:
            return folder, list(SHARED_MEMORY.glob(lock.name.removesuffix("lock") + "*"))
    pytest.fail("no lock")


def test_what_sigkill_leaves_is_private_and_swept_at_the_next_start(start: Start, server: Server) -> None:
    """No process is left, even in the middle of an answer."""
    killed = start()
    children = family(killed.process.pid)
    stream = Stream(killed.grpc_url)
    stream.send(text_input="a", max_tokens=1_000_000, ignore_eos=True, stream=True)
    stream.next()
    folder, memory = memory_of(killed)
    for path in [folder, *folder.rglob("*.sock"), *memory]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert len(memory) >= 2
    killed.stop(signal.SIGKILL)
    wait_for_death(children)
    stream.client.close()
    assert folder.exists()
    start()
    assert not folder.exists()
    assert not [path for path in memory if path.exists()]
    folder, memory = memory_of(server)
    assert folder.exists()
    assert len(memory) >= 2


def test_the_config_says_no_paths_of_the_server(server: Server, engine: Path) -> None:
    with urllib.request.urlopen(f"http://{server.http_url}/v2/models/trtstream/config", timeout=10) as response:
        config = json.load(response)
    assert config["parameters"]["engine_dir"]["string_value"] == "1/engine"
    assert str(engine) not in json.dumps(config)


def listeners(family: str) -> set[tuple[str, int]]:
    """Local addresses, in hexadecimal, and ports that this machine listens on."""
    rows = [line.split() for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]]
    return {(row[1].split(":")[0], int(row[1].split(":")[1], 16)) for row in rows if row[3] == "0A"}


@pytest.mark.skipif(not Path("/proc/net/tcp6").exists(), reason="this machine has no IPv6")
def test_every_address_means_ipv6_too_for_grpc(open_server: Server) -> None:
    """As docs/service.md says: gRPC opens :: for 0.0.0.0, and HTTP does not."""
    grpc, http = (int(url.rpartition(":")[2]) for url in (open_server.grpc_url, open_server.http_url))
    assert ("0" * 32, grpc) in listeners("tcp6")
    assert ("0" * 8, http) in listeners("tcp")


@pytest.mark.skipif(not Path("/proc/net/tcp6").exists(), reason="this machine has no IPv6")
def test_loopback_is_loopback_only(server: Server) -> None:
    ports = {int(url.rpartition(":")[2]) for url in (server.grpc_url, server.http_url, server.metrics_url)}
    loopback = socket.inet_aton("127.0.0.1")[::-1].hex().upper()
    mapped = f"0000000000000000FFFF0000{loopback}"  # ::ffff:127.0.0.1
    found = {address for address, port in listeners("tcp") | listeners("tcp6") if port in ports}
    assert found <= {loopback, mapped}


def test_a_text_beyond_the_limit_is_refused_for_its_bytes(server: Server) -> None:
    with (
        Client(server.grpc_url) as client,
        pytest.raises(TrtstreamError, match="text_input has 5000000 bytes"),
    ):
        client.answer(text_input="x" * 5_000_000)
