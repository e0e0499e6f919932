"""A server that keeps sessions in a store: killed whole and started again, its clients notice only the time it took."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.server import Server, serve_process
from tests.deploy.serving.processes import kill_whole, of_kind
from tests.deploy.serving.test_metrics import samples
from tests.deploy.serving.test_supervisor import STUB, answers, wait_for_log
from tests.runtime.clients import wait_until
from trtstream.deploy.client.client import Client
from trtstream.deploy.client.triton import Response
from trtstream.errors import TrtstreamError
from trtstream.sessions.turn_log import TurnLog

pytestmark = pytest.mark.triton

Start = Callable[..., Server]
TEXTS = ("Hello, how are you?", "And then? " * 20, "Tell me more.")
OPTIONS = {"max_tokens": 30, "ignore_eos": True}


def undisturbed(client: Client) -> list[Response]:
    return [client.answer(text_input=text, session_id="undisturbed", **OPTIONS) for text in TEXTS]


def same(answer: Response, other: Response) -> bool:
    return (answer.token_ids, answer.session_tokens) == (other.token_ids, other.session_tokens)


def test_sessions_outlive_a_server_that_is_killed(start: Start, tmp_path: Path) -> None:
    """Then it is stopped, and leaves a snapshot."""
    store = f"sqlite:///{tmp_path}/sessions.db"
    turn: Response | None = None
    turns = []
    for text in TEXTS:
        server = start("--session-store", store, "--snapshot-dir", str(tmp_path / "snapshots"))
        with Client(server.grpc_url) as client:
            known = {} if turn is None else {"session_tokens": turn.session_tokens, "parent_turn": turn.turn_id}
            turn = client.answer(text_input=text, session_id="s", **known, **OPTIONS)
            turns.append(turn)
            with pytest.raises(TrtstreamError, match=r"session 's' has seen|has .* as its last turn") as error:
                client.answer(text_input=text, session_id="s", parent_turn="0" * 32, **OPTIONS)
            assert error.value.code == "conflict"
        if text == TEXTS[-2]:
            assert server.stop() == 0
        elif text != TEXTS[-1]:
            kill_whole(server.process)
    assert "continues from a snapshot" in server.log.read_text()
    with Client(server.grpc_url) as client:
        assert all(map(same, turns, undisturbed(client)))
    log = TurnLog(store)
    assert [turn.prompt for turn in log.branch(bytes.fromhex(turns[-1].turn_id))] == [*TEXTS]
    log.close()


@pytest.mark.slow
def test_a_model_that_dies_has_its_sessions_again(start: Start, tmp_path: Path) -> None:
    server = start("--session-store", str(tmp_path / "sessions.db"))
    assert (tmp_path / "sessions.db").stat().st_mode & 0o777 == 0o600
    with Client(server.grpc_url) as client:
        expected = undisturbed(client)
        first = client.answer(text_input=TEXTS[0], session_id="s", **OPTIONS)
    os.kill(of_kind(server.process.pid, STUB), signal.SIGKILL)
    wait_for_log(server.log, "starting Triton again")
    wait_for_log(server.log, "ready again")
    assert answers(server)
    with Client(server.grpc_url) as client:
        second = client.answer(text_input=TEXTS[1], session_id="s", session_tokens=first.session_tokens, **OPTIONS)
    assert same(second, expected[1])
    wait_until(lambda: samples(server)["restored_total", "log"] == 1)
    assert samples(server)["restarts_total", ""] == 1


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("mysql://host/db", "the session store is 'mysql'; use sqlite:///PATH or postgresql+psycopg://"),
        ("sqlite:////missing/sessions.db", "/missing/sessions.db cannot be opened (No such file or directory)"),
    ],
)
def test_a_store_that_does_not_open_is_refused_at_start(engine: Path, tmp_path: Path, store: str, message: str) -> None:
    with serve_process(engine, tmp_path / "log", TRTSTREAM_SESSION_STORE=store) as process:
        assert process.wait(60) == 1
    assert message in (tmp_path / "log").read_text().splitlines()[-1]
