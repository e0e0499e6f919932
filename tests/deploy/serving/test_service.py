"""A served model, as a client with nothing but tritonclient or HTTP sees it."""

from __future__ import annotations

import http.client
import json
import queue
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.deploy.serving.streams import MODEL, Stream, ids, number, post, reason, text

pytestmark = pytest.mark.triton


@pytest.fixture
def stream(server: Any) -> Iterator[Stream]:
    stream = Stream(server.grpc_url)
    yield stream
    stream.close()


def test_streamed_and_complete_answers_are_the_same(stream: Stream) -> None:
    question = {"text_input": "Hello", "max_tokens": 12, "ignore_eos": True, "return_log_probs": True}
    answer = stream.ask(**question)
    stream.send(stream=True, **question)
    pieces = stream.all()
    assert len(pieces) == 12
    assert [reason(piece) for piece in pieces] == [""] * 11 + ["length"]
    assert ids(*pieces) == ids(answer)
    assert len(ids(answer)) == 12
    assert text(*pieces) == text(answer)
    assert answer.as_numpy("output_log_probs").shape == (1, 12)
    assert answer.as_numpy("output_byte_counts").tolist() == [[1] * 12]
    assert number(answer, "num_input_tokens") == 5
    assert number(answer, "num_output_tokens") == 12
    assert number(answer, "session_tokens") == 16  # the last sampled one is pending


@pytest.mark.parametrize("kind", ["session_id", "numeric sequence_id", "string sequence_id"])
def test_a_session_continues_where_it_was(stream: Stream, kind: str) -> None:
    options = {"numeric sequence_id": {"sequence_id": 77}, "string sequence_id": {"sequence_id": "77 in words"}}.get(
        kind
    )
    names = {} if options else {"session_id": "the seventy-seventh session"}
    turn = {"max_tokens": 4, "ignore_eos": True, **names}
    start = {**options, "sequence_start": True} if options else None
    first = stream.ask(start, text_input="abc", **turn)
    assert number(first, "session_tokens") == 6
    second = stream.ask(options, text_input="de", session_tokens=6, **turn)
    assert number(second, "session_tokens") == 12
    # The tokens of both turns in one request: the session has forgotten nothing.
    fed = [ord(c) for c in "abc"] + ids(first) + [ord(c) for c in "de"]
    assert ids(stream.ask(input_ids=fed, max_tokens=4, ignore_eos=True)) == ids(second)
    if options:
        stream.ask({**options, "sequence_end": True}, text_input="f", **turn)
    else:
        stream.ask(session_end=True, **names)
    with pytest.raises(InferenceServerException, match="session"):
        stream.ask(options, text_input="g", session_tokens=12, **turn)


def test_session_id_wins_and_numbers_are_not_strings(stream: Stream) -> None:
    turn = {"text_input": "abc", "max_tokens": 1, "ignore_eos": True}
    stream.ask({"sequence_id": 5, "sequence_start": True}, **turn)
    assert number(stream.ask({"sequence_id": "5"}, **turn), "session_tokens") == 3
    assert number(stream.ask({"sequence_id": 5}, session_id="another", **turn), "session_tokens") == 3
    assert number(stream.ask({"sequence_id": 5}, **turn), "session_tokens") == 7
    assert number(stream.ask({"sequence_id": 5, "sequence_start": True}, **turn), "session_tokens") == 3


def test_session_tokens_must_be_the_servers(stream: Stream) -> None:
    stream.ask(text_input="abc", max_tokens=2, session_id="counted", ignore_eos=True)
    with pytest.raises(InferenceServerException, match="session_tokens"):
        stream.ask(text_input="abc", max_tokens=2, session_id="counted", session_tokens=99)
    assert number(stream.ask(session_id="counted", text_input="d", max_tokens=1), "session_tokens") == 6


def test_chat_with_a_system_text(stream: Stream) -> None:
    turn = {"chat": True, "session_id": "chat", "max_tokens": 3, "ignore_eos": True}
    first = stream.ask(text_input="Hi", system="Be kind.", **turn)
    assert number(first, "num_input_tokens") == len("<system>Be kind.\n<user>Hi\n<assistant>")
    assert stream.ask(text_input="And?", **turn).as_numpy("output_ids").size == 3


def test_http_generate(server: Any) -> None:
    body = {"text_input": "Hello", "max_tokens": 8, "ignore_eos": True, "stop_words": ["no such word"]}
    answer = json.load(post(server, "generate", body))
    assert answer["finish_reason"] == "length"
    assert len(answer["output_ids"]) == 8
    with post(server, "generate_stream", {**body, "stream": True}) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix(b"data: ")) for line in response if line.startswith(b"data: ")]
    assert len(events) == 8
    assert "".join(event["text_output"] for event in events) == answer["text_output"]
    assert [event["finish_reason"] for event in events] == [""] * 7 + ["length"]


def test_an_empty_list_of_stop_words_is_none(server: Any, stream: Stream) -> None:
    body = {"text_input": "Hello", "max_tokens": 8, "ignore_eos": True}
    answer = ids(stream.ask(**body))
    assert ids(stream.ask(**body, stop_words=np.zeros(0, np.object_))) == answer
    assert json.load(post(server, "generate", {**body, "stop_words": []}))["output_ids"] == answer


def test_http_generate_is_for_one_response(server: Any) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, "generate", {"text_input": "Hello", "max_tokens": 8, "ignore_eos": True, "stream": True})
    assert caught.value.status == 400
    assert "use generate_stream" in json.load(caught.value)["error"]


def test_http_sessions(server: Any) -> None:
    turn = {"id": "mine", "text_input": "abc", "max_tokens": 2, "ignore_eos": True, "timeout": 30_000_000}
    first = json.load(post(server, "generate", {**turn, "sequence_id": 9, "sequence_start": True}))
    assert (first["id"], first["session_tokens"]) == ("mine", 4)
    turn["id"] = "another"  # one that is repeated gets its answer again
    assert json.load(post(server, "generate", {**turn, "sequence_id": 9, "sequence_end": True}))["session_tokens"] == 9
    assert json.load(post(server, "generate", {**turn, "sequence_id": 9}))["session_tokens"] == 4


BAD_REQUESTS = {
    "unknown parameter": ({"parameters": {"max_token": 5}}, {"text_input": "a"}, "'max_token'"),
    "nothing": ({}, {}, "request has 0 inputs"),
    "two inputs": ({}, {"text_input": "a", "input_ids": [1]}, "input_ids"),
    "no ids": ({}, {"input_ids": np.zeros(0, np.int32)}, "input_ids"),
    "ids out of range": ({}, {"input_ids": [5, 128]}, "128"),
    "negative max_tokens": ({}, {"text_input": "a", "max_tokens": -1}, "max_tokens"),
    "nan": ({}, {"text_input": "a", "temperature": float("nan")}, "temperature"),
    "not UTF-8": ({}, {"text_input": np.array([b"\xff\xfe"], np.object_)}, "UTF-8"),
    "wrong shape": ({}, {"text_input": ["a", "b"]}, r"'text_input'.*\[-1,1\], got \[1,2\]"),
    "a batch of two": ({}, {"input_ids": np.ones((2, 3), np.int32)}, "batch-size must be <= 1"),
    "wrong type": ({}, {"text_input": "a", "max_tokens": 1.5}, "max_tokens"),
    "session_tokens of nobody": ({}, {"text_input": "a", "session_tokens": 5}, "session"),
    "lost session": ({}, {"text_input": "a", "session_id": "nobody", "session_tokens": 5}, "session"),
    "past its deadline": ({"timeout": 1}, {"text_input": "a", "max_tokens": 1000, "ignore_eos": True}, "timeout"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_an_error_goes_to_its_own_request(server: Any, stream: Stream, case: str) -> None:
    options, inputs, named = BAD_REQUESTS[case]
    good = Stream(server.grpc_url)
    good.send(text_input="good", max_tokens=50, ignore_eos=True, stream=True)
    with pytest.raises(InferenceServerException, match=named) as caught:
        stream.ask({"request_id": "bad one", **options}, **inputs)
    assert "\n" not in caught.value.message().strip()
    assert "bad one" in caught.value.message() or "<id_unknown>" in caught.value.message()
    assert len(ids(*good.all())) == 50
    assert stream.ask(text_input="still here", max_tokens=1).as_numpy("output_ids").size == 1
    good.close()


def test_http_errors_are_json(server: Any) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, "generate", {"text_input": "a", "max_token": 5})
    assert "'max_token'" in json.load(caught.value)["error"]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_clients_that_vanish_free_their_lanes(server: Any, protocol: str) -> None:
    endless = {"text_input": "a", "max_tokens": 1_000_000, "ignore_eos": True, "stream": True}
    for _ in range(6):  # more than there are lanes
        if protocol == "grpc":
            client = Stream(server.grpc_url)
            client.send(**endless)
            client.next()
            client.close()
        else:
            response = post(server, "generate_stream", endless)
            response.readline()
            response.close()
    asker = Stream(server.grpc_url)
    assert asker.ask(text_input="b", max_tokens=1).as_numpy("output_ids").size == 1
    asker.close()


def test_a_turn_without_a_bound_is_refused(stream: Stream) -> None:
    limit = r"max_tokens is 2147483647; it must be an integer from 1 to 1048576 \(this server's --max-tokens-limit\)"
    with pytest.raises(InferenceServerException, match=limit):
        stream.ask(text_input="a", max_tokens=2**31 - 1)


def test_clients_that_hold_all_lanes_make_room(server: Any, stream: Stream) -> None:
    hogs = [Stream(server.grpc_url) for _ in range(4)]
    for hog in hogs:
        hog.send(text_input="a", max_tokens=1_000_000, ignore_eos=True, stream=True)
        hog.next()
    assert reason(stream.ask(text_input="b", max_tokens=3)) == "length"
    for hog in hogs:
        hog.close()


def test_a_waiting_client_that_vanishes_is_forgotten(server: Any) -> None:
    streams = [Stream(server.grpc_url) for _ in range(5)]
    for one in streams[:4]:  # all lanes
        one.send(text_input="a", max_tokens=1_000_000, ignore_eos=True, stream=True)
        one.next()
    streams[4].send(text_input="a", session_id="waiting", max_tokens=1_000_000, ignore_eos=True)
    time.sleep(0.2)
    streams[4].close()  # without an output to notice it by
    asker = Stream(server.grpc_url)
    refusals = 0
    while True:  # its session is free again, though no lane is: the next turn is not refused, but waits
        asker.send(text_input="b", session_id="waiting", max_tokens=1)
        try:
            _, error = asker.arrivals.get(timeout=0.5)
        except queue.Empty:
            break
        assert "waiting" in str(error)
        refusals += 1
        assert refusals < 1000
    for one in streams[:4]:
        one.close()
    assert asker.next().as_numpy("output_ids").size == 1
    asker.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get_model_repository_index(),
        lambda client: client.load_model(MODEL),
        lambda client: client.unload_model(MODEL),
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.register_system_shared_memory("a", "/a", 8),
        lambda client: client.get_trace_settings(),
        lambda client: client.update_log_settings({"log_file": "/tmp/owned"}),
    ],
)
def test_grpc_apis_are_closed(stream: Stream, call: Any) -> None:
    with pytest.raises(InferenceServerException, match="restricted"):
        call(stream.client)
    for value in ("no request", "no"):  # the header is known, and no value of it fits
        with pytest.raises(InferenceServerException, match="restricted"):
            stream.client.get_log_settings(headers={"triton-grpc-protocol-closed-by-trtstream": value})


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    ["repository/index", f"repository/models/{MODEL}/unload", "systemsharedmemory/status", "trace/setting", "logging"],
)
def test_http_apis_are_closed(server: Any, method: str, path: str) -> None:
    for headers in ({}, {"closed-by-trtstream": "no request"}):
        request = urllib.request.Request(f"http://{server.http_url}/v2/{path}", b"{}", headers, method=method)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        assert "restricted" in json.load(caught.value)["error"]


def test_no_header_opens_the_closed_apis(server: Any) -> None:
    """The value that is wanted has a line break; folded over two lines it still does not get through."""
    connection = http.client.HTTPConnection(server.http_url, timeout=10)
    connection.request("GET", "/v2/logging", headers={"closed-by-trtstream": "no\r\n request"})
    assert "restricted" in json.load(connection.getresponse())["error"]
    connection.close()


@pytest.mark.parametrize("body", [b'"id": "a\xff"', b'"foo": "a\xff"', b'"f\xff": 1', b'"sequence_id": "a\xff"'])
@pytest.mark.parametrize("endpoint", ["generate", "generate_stream"])
def test_an_id_or_a_parameter_that_is_not_utf8(server: Any, endpoint: str, body: bytes) -> None:
    url = f"http://{server.http_url}/v2/models/{MODEL}/{endpoint}"
    request = urllib.request.Request(url, b'{"text_input": "Hi", "max_tokens": 1, ' + body + b"}")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 400
    error = json.load(caught.value)["error"]
    assert error == "[invalid] the request's id or a parameter is not UTF-8; encode it as UTF-8"


def test_an_error_is_one_line_whatever_the_requests_id(stream: Stream) -> None:
    stream.send({"request_id": "a\nb\x1b[31m"}, text_input="Hi", max_tokens=0)
    with pytest.raises(InferenceServerException) as caught:
        stream.next()
    assert caught.value.message().startswith(r"[invalid] a\nb\x1b[31m: max_tokens is 0")


@pytest.mark.parametrize("penalty", [1e-45, 3e38])
def test_a_penalty_at_the_end_of_its_range(stream: Stream, penalty: float) -> None:
    for temperature in (0.0, 1.0):
        stream.send(text_input="Hi", max_tokens=4, repetition_penalty=penalty, temperature=temperature, ignore_eos=True)
        assert len(ids(*stream.all())) == 4
