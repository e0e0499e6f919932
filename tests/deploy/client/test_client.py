from __future__ import annotations

import threading
from contextlib import closing

import pytest

from trtstream.deploy.client.client import Client
from trtstream.deploy.client.triton import Response, new_session
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import join

pytestmark = pytest.mark.triton

ENDLESS = {"input_ids": [1, 2, 3], "max_tokens": 100_000, "ignore_eos": True, "stream": True}


@pytest.fixture
def client(server):
    with Client(server.grpc_url) as client:
        yield client


def test_a_stream_joins_up_to_the_answer(client: Client) -> None:
    request = {"input_ids": [1, 2, 3], "max_tokens": 8, "ignore_eos": True}
    responses = list(client.generate(**request, stream=True))
    assert [len(response.token_ids) for response in responses] == [1] * 8
    assert sorted(response.received_at for response in responses) == [response.received_at for response in responses]
    answer = client.answer(**request)
    joined = join(responses)
    assert (joined.text, joined.token_ids, joined.finish_reason) == (answer.text, answer.token_ids, "length")
    assert (answer.num_input_tokens, answer.num_output_tokens) == (3, 8)


def test_closing_the_iterator_cancels(client: Client) -> None:
    with new_session(client, "test") as session_id:
        with closing(client.generate(**ENDLESS, session_id=session_id)) as responses:
            next(responses)
        # The session takes its next turn only when the one before has ended.
        wait_until_free(client, session_id)


def test_cancel_from_another_thread(client: Client) -> None:
    threading.Timer(0.2, client.cancel).start()
    with pytest.raises(TrtstreamError, match="the request was cancelled"):
        client.answer(**ENDLESS)
    assert client.answer(input_ids=[1], max_tokens=1).num_output_tokens == 1


def test_the_models_own_error(client: Client) -> None:
    with pytest.raises(TrtstreamError, match=r"^max_tokens is 0") as caught:
        client.answer(input_ids=[1], max_tokens=0)
    assert caught.value.code == "invalid"
    assert client.answer(input_ids=[1], max_tokens=1).num_output_tokens == 1


def test_a_silent_server(server) -> None:
    with (
        Client(server.grpc_url, timeout=0.01) as client,
        pytest.raises(TrtstreamError, match=r"sent nothing for 0\.01 s"),
    ):
        client.answer(**{**ENDLESS, "stream": False})


def test_a_server_that_dies_in_the_middle(start) -> None:
    server = start()
    with Client(server.grpc_url) as client:
        with closing(client.generate(**ENDLESS)) as responses:
            next(responses)
            server.process.kill()
            with pytest.raises(TrtstreamError, match="went away in the middle of an answer"):
                list(responses)
        with pytest.raises(TrtstreamError, match="no Triton gRPC service answers at"):
            client.answer(input_ids=[1])


def test_an_absent_server() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(TrtstreamError, match="no Triton gRPC service answers at"):
        client.answer(input_ids=[1])


def test_a_server_that_speaks_something_else(server) -> None:
    url = server.http_url.removeprefix("http://")
    with Client(url, timeout=20) as client, pytest.raises(TrtstreamError, match=f"^{url} is an HTTP service; give"):
        client.health()


def test_a_url_with_a_scheme() -> None:
    with pytest.raises(TrtstreamError, match="as host:port"):
        Client("http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        ("localhost", "localhost:8001"),
        ("localhost:9001", "localhost:9001"),
        ("[::1]", "[::1]:8001"),
        ("[::1]:9001", "[::1]:9001"),
        ("unix:/run/triton", "unix:/run/triton"),
    ],
)
def test_a_url_without_a_port(given: str, completed: str) -> None:
    assert Client(given).url == completed


def wait_until_free(client: Client, session_id: str) -> Response:
    for _ in range(200):
        try:
            return client.answer(input_ids=[1], session_id=session_id, max_tokens=1)
        except TrtstreamError as error:
            if error.code != "busy":
                raise
    pytest.fail("the cancelled turn still runs")
