"""openai-python's responses on a real server: conversations, forks, streams, refusals, restarts, clients that leave."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from tests.deploy.gateway.conftest import connect
from tests.deploy.server import Server
from tests.deploy.serving.processes import kill_whole, of_kind
from tests.deploy.serving.test_supervisor import STUB, wait_for_log
from trtstream.deploy.client.client import Client
from trtstream.sessions.turn_log import TurnLog

pytestmark = pytest.mark.triton

Start = Callable[..., Server]
SYSTEM = "Be kind."
TEXTS = ("Hello, how are you?", "And then? " * 12, "Tell me more.", "Go on.")
OPTIONS: dict[str, Any] = {"model": "trtstream", "max_output_tokens": 20}


def on_triton(server: Server, texts: tuple[str, ...], session_id: str) -> list[tuple[str, int]]:
    """Text and session_tokens of each turn of a session, asked with tritonclient."""
    with Client(server.grpc_url) as client:
        first, *others = texts
        turns = [client.answer(text_input=first, chat=True, system=SYSTEM, session_id=session_id, max_tokens=20)]
        for text in others:
            turns.append(client.answer(text_input=text, chat=True, session_id=session_id, max_tokens=20))
        return [(turn.text, turn.session_tokens) for turn in turns]


def previous(response: Response | None) -> dict[str, Any]:
    return {"instructions": SYSTEM} if response is None else {"previous_response_id": response.id}


def test_a_conversation_is_a_session(server: Server, client: openai.OpenAI) -> None:
    """Plain, streamed and with asyncio: the greedy texts of a session, of which each turn feeds what is new."""

    def plain(text: str, last: Response | None) -> Response:
        return client.responses.create(input=text, **previous(last), **OPTIONS)

    def streamed(text: str, last: Response | None) -> Response:
        message = [{"role": "user", "content": [{"type": "input_text", "text": text}]}]
        usage: Any = {"include_usage": True}  # chat's, which AIPerf sends here too
        *_, end = client.responses.create(input=message, stream=True, stream_options=usage, **previous(last), **OPTIONS)
        return end.response

    def with_asyncio(text: str, last: Response | None) -> Response:
        async def ask() -> Response:
            url = f"http://{server.openai_url}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
                return await client.responses.create(input=text, **previous(last), **OPTIONS)

        return asyncio.run(ask())

    expected = on_triton(server, TEXTS, "a-conversation")
    for way in (plain, streamed, with_asyncio):
        last, fed = None, 0
        for text, (answer, tokens) in zip(TEXTS, expected, strict=True):
            response = way(text, last)
            assert response.output_text == answer
            assert response.usage is not None
            assert response.usage.input_tokens_details.cached_tokens == fed
            assert response.usage.total_tokens == tokens + 1  # the last one is fed by the next turn
            assert response.previous_response_id == (None if last is None else last.id)
            last, fed = response, tokens


def test_an_input_of_several_messages(server: Server, client: openai.OpenAI) -> None:
    """A whole conversation at once: the texts of its turns, and it can be continued."""
    (first, tokens), (second, _), (third, _) = on_triton(server, TEXTS[:3], "several")
    asked: Any = [
        {"role": "developer", "content": SYSTEM},
        {"role": "user", "content": TEXTS[0]},
        {"role": "assistant", "content": [{"type": "output_text", "text": first}]},
        {"role": "user", "content": TEXTS[1]},
    ]
    for messages, given in ((asked, {}), (asked[1:], {"instructions": SYSTEM})):
        response = client.responses.create(input=messages, **given, **OPTIONS)
        assert response.output_text == second
        assert response.usage is not None
        assert response.usage.input_tokens_details.cached_tokens == tokens
        after = client.responses.create(input=TEXTS[2], previous_response_id=response.id, **OPTIONS)
        assert after.output_text == third
        assert client.responses.retrieve(response.id).output_text == second


def test_a_response_continued_twice_forks(server: Server, client: openai.OpenAI) -> None:
    root = client.responses.create(input=TEXTS[0], instructions=SYSTEM, **OPTIONS)
    for text in ("One way.", "Another way.", "One way."):
        branch = client.responses.create(input=text, previous_response_id=root.id, **OPTIONS)
        leaf = client.responses.create(input=TEXTS[2], previous_response_id=branch.id, **OPTIONS)
        expected = on_triton(server, (TEXTS[0], text, TEXTS[2]), f"fork-{branch.id}")
        assert [branch.output_text, leaf.output_text] == [answer for answer, _ in expected[1:]]


def test_the_events_of_a_stream(client: openai.OpenAI) -> None:
    options = {**OPTIONS, "temperature": 0.9, "metadata": {"a": "b"}, "extra_body": {"seed": 7, "top_k": 20}}
    plain = client.responses.create(input="Hello", **options)
    events = list(client.responses.create(input="Hello", stream=True, **options))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    begin = ["created", "in_progress", "output_item.added", "content_part.added"]
    end = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    names = [event.type.removeprefix("response.") for event in events]
    deltas = names[len(begin) : -len(end)]
    assert names == begin + ["output_text.delta"] * len(deltas) + end
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == plain.output_text
    created, *_, last = events
    assert (created.response.id, created.response.status) == (last.response.id, "in_progress")
    own = {"id", "created_at", "completed_at", "output"}  # of each response
    assert last.response.to_dict(exclude_unset=True).keys() == plain.to_dict().keys()
    assert {**last.response.to_dict(), **dict.fromkeys(own)} == {**plain.to_dict(), **dict.fromkeys(own)}
    assert last.response.output_text == plain.output_text
    assert (plain.status, plain.metadata, plain.temperature) == ("incomplete", {"a": "b"}, 0.9)


def test_stop_words_and_penalties(server: Server, client: openai.OpenAI) -> None:
    sampling = {"repetition_penalty": 1.01, "temperature": 0.9, "top_k": 20, "frequency_penalty": 0.5}
    turn = {"text_input": "Hello", "chat": True, "max_tokens": 20, "random_seed": 7, **sampling}
    with Client(server.grpc_url) as triton:
        whole = triton.answer(**turn).text
        stop = whole[len(whole) // 2]
        cut = triton.answer(**turn, stop_words=[stop]).text
    extra = {"seed": 7, "stop": stop, **sampling}
    asked = client.responses.create(input="Hello", extra_body=extra, **OPTIONS)
    assert (asked.output_text, asked.status, asked.incomplete_details) == (cut, "completed", None)
    assert cut != whole
    assert asked.to_dict()["frequency_penalty"] == 0.5


def test_without_store_nothing_is_kept(client: openai.OpenAI, store: str) -> None:
    root = client.responses.create(input="Hello", **OPTIONS)
    log = TurnLog(store)
    known = len(log.summaries())
    kept = client.responses.create(input="And?", previous_response_id=root.id, **OPTIONS)
    for options in ({"stream": False}, {"stream": True}):
        answer = client.responses.create(input="And?", previous_response_id=root.id, store=False, **options, **OPTIONS)
        response = answer if isinstance(answer, Response) else [*answer][-1].response
        assert response.output_text == kept.output_text
        with pytest.raises(openai.NotFoundError, match="store false"):
            client.responses.create(input="x", previous_response_id=response.id, **OPTIONS)
    assert len(log.summaries()) == known
    assert log.turn(bytes.fromhex(kept.id.removeprefix("resp_"))) is not None
    log.close()


BAD: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({"model": "gpt-4"}, 404, "model", "model_not_found"),
    ({"input": None}, 400, "input", "missing_required_parameter"),
    ({"input": []}, 400, "input", "invalid_type"),
    ({"input": [{"type": "function_call_output"}]}, 400, "input", "unsupported_content"),
    (
        {"input": [{"role": "user", "content": "a"}] * 2, "previous_response_id": "resp_" + "0" * 32},
        400,
        "input",
        "unsupported_content",
    ),
    ({"input": [{"role": "assistant", "content": "a"}]}, 400, "input", "unsupported_content"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 400, "input", "unsupported_content"),
    ({"input": "\ud800"}, 400, None, "invalid_json"),
    ({"tools": [{"type": "web_search"}]}, 400, "tools", "unsupported_parameter"),
    ({"background": True, "store": False}, 400, "store", "invalid_value"),
    ({"conversation": "c", "store": False}, 400, "store", "invalid_value"),
    ({"conversation": "c"}, 404, "conversation", "conversation_not_found"),
    ({"conversation": 7}, 400, "conversation", "invalid_type"),
    ({"conversation": "c", "previous_response_id": "resp_" + "0" * 32}, 400, "conversation", "invalid_value"),
    ({"colour": "red"}, 400, "colour", "unsupported_parameter"),
    ({"temperature": -1}, 400, "temperature", "invalid_value"),
    ({"temperature": "hot"}, 400, "temperature", "invalid_type"),
    ({"max_output_tokens": 0}, 400, "max_output_tokens", "invalid_value"),
    ({"max_output_tokens": 1 << 40}, 400, "max_output_tokens", "invalid_value"),
    ({"max_output_tokens": (1 << 31) - 1}, 400, None, "invalid"),  # --max-tokens-limit, which the model knows
    ({"seed": -1}, 400, "seed", "invalid_value"),
    ({"stop": [7]}, 400, "stop", "invalid_type"),
    ({"stream": 1}, 400, "stream", "invalid_type"),
    ({"metadata": {"a": 1}}, 400, "metadata", "invalid_value"),
    ({"previous_response_id": "resp_" + "0" * 32}, 404, "previous_response_id", "previous_response_not_found"),
    ({"previous_response_id": "0" * 32}, 404, "previous_response_id", "previous_response_not_found"),
    ({"previous_response_id": "resp_0"}, 404, "previous_response_id", "previous_response_not_found"),
    (
        {"previous_response_id": "resp_" + "0" * 32, "instructions": "x"},
        400,
        "instructions",
        "unsupported_parameter",
    ),
    ({"instructions": "x" * 100}, 400, None, "invalid"),  # more than the engine's sinks
]


def post(server: Server, path: str, body: bytes) -> tuple[int, Any]:
    assert server.openai_url is not None
    connection = http.client.HTTPConnection(server.openai_url, timeout=60)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_what_is_wrong_or_not_done_is_refused_by_name(server: Server) -> None:
    for stream in (False, True):
        for wrong, status, param, code in BAD:
            body = json.dumps({"model": "trtstream", "input": "Hello", "stream": stream, **wrong}).encode()
            found, answer = post(server, "/v1/responses", body)
            error = answer["error"]
            assert (found, error["param"], error["code"]) == (status, param, code), (wrong, answer)
            assert error["message"]
            assert error["type"] == "invalid_request_error"
    for path, body, status in (
        ("/v1/responses", b"{", 400),
        ("/v1/responses", b"[]", 400),
        ("/v1/responses", b"[" * 1000, 400),
        ("/v1/responses", b" " * (9 << 20), 413),
        ("/v1/nothing", b"{}", 404),
        ("/v1/models", b"{}", 405),
    ):
        found, answer = post(server, path, body)
        assert (found, answer["error"]["type"]) == (status, "invalid_request_error"), answer


def test_models_and_health(server: Server, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["trtstream"]
    model = client.models.retrieve("trtstream")
    assert (model.id, model.max_attention_window, model.sink_token_length) == ("trtstream", 64, 4)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    assert server.openai_url is not None
    connection = http.client.HTTPConnection(server.openai_url, timeout=60)
    for path in ("/health", "/ready"):
        connection.request("GET", path)
        assert json.load(connection.getresponse()) == {"ready": True, "state": "ready"}
    connection.request("BREW", "/v1/responses/resp_1?a=b")
    connection.getresponse().read()
    connection.request("GET", "/metrics")
    metrics = connection.getresponse().read().decode()
    connection.close()
    assert "trtstream_gateway_turns_running 0\n" in metrics
    for labels in ('method="GET",route="/v1/models",status="200"', 'method="GET",route="/health",status="200"'):
        assert f"trtstream_gateway_request_seconds_count{{{labels}}} " in metrics
    assert 'method="other"' in metrics
    assert "BREW" not in metrics
    assert "resp_1" not in metrics


@pytest.mark.slow
def test_a_conversation_outlives_its_server(server: Server, start: Start, tmp_path: Path) -> None:
    """Killed whole after the first turn, and its model after the second, under the next."""
    options = ("--openai-port", "0", "--session-store", f"sqlite:///{tmp_path}/sessions.db")
    expected = on_triton(server, TEXTS, "outlived")
    first = start(*options)
    with connect(first) as client:
        response = client.responses.create(input=TEXTS[0], instructions=SYSTEM, **OPTIONS)
        answers = [response.output_text]
    kill_whole(first.process)
    second = start(*options)
    with connect(second) as client:
        response = client.responses.create(input=TEXTS[1], previous_response_id=response.id, **OPTIONS)
        answers.append(response.output_text)
        os.kill(of_kind(second.process.pid, STUB), signal.SIGKILL)
        wait_for_log(second.log, "starting Triton again")
        with pytest.raises(openai.InternalServerError) as away:
            client.responses.create(input=TEXTS[2], previous_response_id=response.id, **OPTIONS)
        assert away.value.status_code == 503
        wait_for_log(second.log, "ready again")
        for text in TEXTS[2:]:
            response = client.responses.create(input=text, previous_response_id=response.id, **OPTIONS)
            answers.append(response.output_text)
    assert answers == [answer for answer, _ in expected]


def test_the_gateway_needs_neither_torch_nor_transformers() -> None:
    code = """
import sys
import trtstream.deploy.gateway.app
import tritonclient.grpc
print([name for name in ("torch", "transformers", "safetensors", "sqlalchemy") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
