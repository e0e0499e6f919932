"""A Triton or a model that dies or hangs: it is seen, clients get an error, and the service comes back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from tests.deploy.server import START_SECONDS, Server, serve_process
from tests.deploy.serving.processes import family, of_kind, wait_for_death
from tests.deploy.serving.streams import Stream, ids
from trtstream.deploy.client.client import Client
from trtstream.deploy.serving.package import package_engine
from trtstream.errors import TrtstreamError

pytestmark = pytest.mark.triton

Start = Callable[..., Server]
STUB, TRITON = "python_backend_stub", "tritonserver"


def wait_for_log(log: Path, words: str, number: int = 1) -> str:
    """The log's line that has ``words`` for the first time, or for the time ``number``."""
    for _ in range(START_SECONDS * 20):
        found = [line for line in log.read_text().splitlines() if words in line]
        if len(found) >= number:
            return found[number - 1]
        time.sleep(0.05)
    pytest.fail(f"no {words!r} in the log:\n{log.read_text()}")


def answers(server: Server) -> bool:
    stream = Stream(server.grpc_url)
    try:
        return len(ids(stream.ask(text_input="a", max_tokens=2, ignore_eos=True))) == 2
    finally:
        stream.close()


def test_what_dies_is_started_again(start: Start) -> None:
    server = start()
    deaths = ((STUB, "a model's process died"), (TRITON, "tritonserver exited with code -9"))
    for number, (victim, reason) in enumerate(deaths, start=1):
        before = family(server.process.pid)
        stream = Stream(server.grpc_url)
        stream.send(text_input="a", max_tokens=1_000_000, ignore_eos=True, stream=True)
        stream.next()
        os.kill(of_kind(server.process.pid, victim), signal.SIGKILL)
        with pytest.raises(InferenceServerException) as error:
            stream.all()
        assert error.value.status() == "StatusCode.UNAVAILABLE"
        stream.close()
        line = wait_for_log(server.log, "starting Triton again", number)
        assert line.startswith(reason)
        assert f"restart {number} of at most 5 in 10 minutes" in line
        wait_for_log(server.log, "ready again", number)
        wait_for_death(before)
        assert answers(server)
    assert server.stop() == 0, server.log.read_text()
    assert server.process.stdout.read() == ""  # the ready line was all


@pytest.mark.quick("tritonserver")
@pytest.mark.parametrize("victim", [STUB, TRITON])
def test_never_restarted(start: Start, victim: str) -> None:
    server = start("--restart", "never")
    children = family(server.process.pid)
    os.kill(of_kind(server.process.pid, victim), signal.SIGKILL)
    assert server.process.wait(30) == 1
    reason = "a model's process died" if victim == STUB else "tritonserver exited with code -9"
    assert server.log.read_text().splitlines()[-1].startswith(f"trtstream: {reason}")
    wait_for_death(children)


def test_a_stopped_model_is_a_hang_and_restarts_have_a_limit(start: Start) -> None:
    server = start("--hang-timeout", "2", "--max-restarts", "1")
    stub = of_kind(server.process.pid, STUB)
    os.kill(stub, signal.SIGSTOP)
    assert wait_for_log(server.log, "starting Triton again").startswith("a model has done nothing for ")
    wait_for_log(server.log, "ready again")
    wait_for_death({stub})
    assert answers(server)
    os.kill(of_kind(server.process.pid, STUB), signal.SIGKILL)
    assert server.process.wait(30) == 1
    assert "1 times in 10 minutes, which is the limit (--max-restarts)" in server.log.read_text().splitlines()[-1]


def edited(engine: Path, repository: Path, code: str) -> Path:
    """A packaged repository whose model runs ``code`` when its module is loaded."""
    model = package_engine(engine, repository)
    with (model / "1" / "model.py").open("a") as file:
        file.write(f"\n{code}\n")
    return repository


def test_a_stuck_step_is_a_hang(start: Start, engine: Path, tmp_path: Path) -> None:
    stuck = "from trtstream.runtime.scheduler import Scheduler\nScheduler._step = lambda self: time.sleep(3600)"
    server = start("--hang-timeout", "2", source=edited(engine, tmp_path / "repository", stuck))
    with Client(server.grpc_url, "trtstream") as client:
        with pytest.raises(TrtstreamError, match="went away in the middle of an answer") as error:
            client.answer(text_input="a", max_tokens=1)
        assert "\n" not in str(error.value)
    wait_for_log(server.log, "a model has done nothing for ")


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        ("os.kill(os.getpid(), 9)", [], "a model's process died while it was loading"),
        ("time.sleep(3600)", ["--start-timeout", "4"], "Triton was not ready within --start-timeout 4 s"),
    ],
)
def test_a_model_that_never_loads(engine: Path, tmp_path: Path, code: str, options: list[str], message: str) -> None:
    repository = edited(engine, tmp_path / "repository", code)
    with serve_process(repository, tmp_path / "log", *options) as process:
        assert process.wait(60) == 1
    assert message in (tmp_path / "log").read_text().splitlines()[-1]


def handles_sigterm(process_id: int) -> bool:
    status = Path(f"/proc/{process_id}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.quick("300")
@pytest.mark.parametrize("milliseconds", [0, 100, 300, 600])
def test_a_signal_in_the_first_second(engine: Path, tmp_path: Path, milliseconds: int) -> None:
    """From the moment on in which Python runs the first of trtstream's code."""
    with serve_process(engine, tmp_path / "log") as process:
        while not handles_sigterm(process.pid):
            time.sleep(0.005)
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_turn_that_is_being_read_when_the_drain_begins_is_answered(
    start: Start, engine: Path, tmp_path: Path
) -> None:
    slow = "_parse = parse_turn\ndef parse_turn(*a, **k):\n    time.sleep(3)\n    return _parse(*a, **k)"
    server = start(source=edited(engine, tmp_path / "repository", slow))
    stream = Stream(server.grpc_url)
    stream.send(text_input="a", max_tokens=2, ignore_eos=True)
    time.sleep(1)
    server.process.send_signal(signal.SIGTERM)
    assert len(ids(*stream.all())) == 2
    assert server.process.wait(60) == 0, server.log.read_text()
    stream.client.close()
