from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.command_line import run_in_process, run_trtstream
from trtstream.deploy.client.checks import CHECKS, check_health, require_refusal
from trtstream.deploy.client.client import Client
from trtstream.deploy.client.judges import (
    CheckFailed,
    choose_stop_word,
    require_same_answer,
    require_session,
    require_stopped,
    require_stream,
    require_tensors,
)
from trtstream.deploy.client.smoke import run_check
from trtstream.deploy.client.triton import Response, ServedModel
from trtstream.errors import TrtstreamError
from trtstream.runtime import request_fields

INPUTS = request_fields.datatypes(request_fields.INPUTS)
OUTPUTS = request_fields.datatypes(request_fields.OUTPUTS)

pytestmark = pytest.mark.triton

MODEL = ServedModel(inputs=INPUTS, outputs=OUTPUTS, decoupled=True, parameters={})


def answer(text: str = "abc", ids: tuple[int, ...] = (1, 2, 3), reason: str = "length", **counts: int) -> Response:
    counts = {"num_input_tokens": 5, "num_output_tokens": len(ids), "session_tokens": 7, **counts}
    return Response(text, ids, (), reason, received_at=0.0, **counts)


STREAM = [
    answer("a", (1,), "", num_output_tokens=1),
    answer("b", (2,), "", num_output_tokens=2),
    answer("c", (3,), "length", num_output_tokens=3),
]


def test_smoke_passes_every_check(server) -> None:
    result = run_trtstream("smoke", "--url", server.grpc_url)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * len(CHECKS), result.stdout + result.stderr
    assert result.returncode == 0


def test_smoke_json(server) -> None:
    result = run_in_process("smoke", "--url", server.grpc_url, "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 0
    assert report["passed"] is True
    assert [check["name"] for check in report["checks"]] == list(CHECKS)
    assert all(check["detail"] for check in report["checks"])


def test_nothing_listens() -> None:
    result = run_in_process("smoke", "--url", "127.0.0.1:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("trtstream: no Triton gRPC service answers at 127.0.0.1:1: start one with")
    assert len(result.stderr.splitlines()) == 1


def test_a_model_that_is_not_there(server) -> None:
    result = run_in_process("smoke", "--url", server.grpc_url, "--model-name", "nobody")
    assert (result.returncode, result.stdout) == (1, "")
    expected = f"trtstream: the server at {server.grpc_url} has no model 'nobody'; see --model-name\n"
    assert result.stderr == expected


def test_a_check_that_fails_is_reported_and_not_raised() -> None:
    with Client("127.0.0.1:1") as client:
        result = run_check("health", check_health, client, MODEL)
    assert not result.passed
    assert "no Triton gRPC service answers" in result.detail


def test_right_answers_pass() -> None:
    require_tensors(MODEL, INPUTS, OUTPUTS)
    require_stream(STREAM, answer())
    require_same_answer(answer(), answer())
    require_session([answer(session_tokens=7), answer(session_tokens=15), answer(session_tokens=23)], window=14)
    require_stopped(answer("one ", reason="stop"), "one two two", "two")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (replace(MODEL, inputs={**INPUTS, "top_k": "INT64"}), "expected input top_k INT32; found INT64"),
        (replace(MODEL, outputs={"text_output": "BYTES"}), "expected output output_ids INT32; found no such tensor"),
        (replace(MODEL, decoupled=False), "expected a decoupled model"),
    ],
)
def test_wrong_tensors(model: ServedModel, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        require_tensors(model, INPUTS, OUTPUTS)


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ([answer()], "expected at least 2 streamed responses; found 1"),
        ([STREAM[1], STREAM[0], STREAM[2]], "expected num_output_tokens 1; found 2"),
        ([STREAM[0], STREAM[2]], "expected num_output_tokens 2; found 3"),
        ([STREAM[0], replace(STREAM[1], finish_reason="stop"), STREAM[2]], "expected an empty finish_reason"),
        ([*STREAM[:2], replace(STREAM[2], text="C")], "expected the text 'abc'; found 'abC'"),
        ([*STREAM[:2], replace(STREAM[2], token_ids=(4,))], r"expected the token ids \[1, 2, 3\]; found \[1, 2, 4\]"),
        ([*STREAM[:2], replace(STREAM[2], finish_reason="")], "expected 'length'; found ''"),
    ],
)
def test_wrong_streams(responses: list[Response], message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        require_stream(responses, answer())


@pytest.mark.parametrize(
    ("session_tokens", "window", "message"),
    [
        ((7, 14, 23), 10, "expected session_tokens 15 after turn 2; found 14"),
        ((7, 15, 24), 10, "expected session_tokens 23 after turn 3; found 24"),
        ((7, 15, 23), 15, "expected more than 15 tokens before the last turn; found 15"),
    ],
)
def test_wrong_sessions(session_tokens: tuple[int, ...], window: int, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        require_session([answer(session_tokens=count) for count in session_tokens], window)


def test_a_session_that_no_longer_answers() -> None:
    turns = [answer(session_tokens=7), answer(session_tokens=15), answer("", (), session_tokens=20)]
    with pytest.raises(CheckFailed, match="expected an answer in turn 3; found no token"):
        require_session(turns, window=10)


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        ("one two", "stop", "expected the text 'one ' before the stop word 'two'; found 'one two'"),
        ("one", "stop", "expected the text 'one '"),
        ("one ", "length", "expected finish_reason 'stop'; found 'length'"),
    ],
)
def test_wrong_stops(text: str, reason: str, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        require_stopped(answer(text, reason=reason), "one two two", "two")


def test_stop_word_is_whole_characters() -> None:
    assert choose_stop_word("abcdefgh") == "efg"
    assert choose_stop_word("abc\ufffd\ufffd\ufffd\ufffd\ufffd") == "abc"
    with pytest.raises(CheckFailed, match="expected a greedy text"):
        choose_stop_word("ab\ufffdcd\ufffd")


def test_a_request_that_should_be_refused(server) -> None:
    with Client(server.grpc_url) as client:
        require_refusal(client, "no tokens", "max_tokens", input_ids=[1], max_tokens=0)
        with pytest.raises(CheckFailed, match=r"expected an error that names top_k .* found max_tokens is 0"):
            require_refusal(client, "no tokens", "top_k", input_ids=[1], max_tokens=0)
        with pytest.raises(CheckFailed, match="expected an error for one token; found the answer"):
            require_refusal(client, "one token", "max_tokens", input_ids=[1], max_tokens=1)


def test_a_server_that_lacks_a_parameter() -> None:
    with pytest.raises(TrtstreamError, match="no integer parameter 'vocab_size'"):
        MODEL.parameter("vocab_size")
