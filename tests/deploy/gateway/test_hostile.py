"""Clients that mean harm: the gateway answers everybody else meanwhile, and says what is wrong with a request."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket

import openai
import pytest

from tests.deploy.server import Server
from trtstream.machine import resident_memory

pytestmark = pytest.mark.triton

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
HALVES = (b"", POST, POST + b"Content-Length: 100\r\n\r\n{", POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{")


def post(server: Server, body: bytes) -> tuple[int, str]:
    """The status and the error's message of a chat completion."""
    connection = http.client.HTTPConnection(str(server.openai_url), timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())["error"]["message"]


def test_a_thousand_half_open_connections(server: Server, client: openai.OpenAI) -> None:
    """Nothing, half of the headers, half of a body: they take no place from those who ask."""
    host, _, port = str(server.openai_url).partition(":")
    before = resident_memory(server.process.pid)
    with contextlib.ExitStack() as held:
        for number in range(1000):
            connection = held.enter_context(socket.create_connection((host, int(port)), timeout=60))
            with contextlib.suppress(ConnectionError):
                connection.sendall(HALVES[number % len(HALVES)])
        assert client.responses.create(model="trtstream", input="Hello", max_output_tokens=2).output_text
        print(f"resident memory: {(resident_memory(server.process.pid) - before) / 1e6:+.1f} MB")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"[" * 100_000, 400, "nested more than 64 deep"),
        (b'{"model": "trtstream", "messages": ' + b"[" * 63 + b"]" * 63 + b"}", 400, "messages[0] must be an object"),
        (json.dumps({"messages": [{}] * 4097, "model": "trtstream"}).encode(), 400, "at most 4096 are taken"),
        (b"{" + b",".join(b'"%d": 1' % number for number in range(200_000)) + b"}", 400, "members, which is the limit"),
        (b'"' + b"x" * (9 << 20) + b'"', 413, "8388608 bytes, which is the limit"),
        (b'{"model": "trtstream", "seed": ' + b"9" * 5000 + b"}", 400, "not JSON"),
        (b'{"model": "trtstream", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "lone surrogate"),
        (b"\xff\xfe", 400, "not JSON"),
    ],
    ids=["deep", "deep messages", "many messages", "wide", "large", "long number", "surrogate", "not UTF-8"],
)
def test_hostile_bodies(server: Server, body: bytes, status: int, message: str) -> None:
    found, said = post(server, body)
    assert (found, message in said) == (status, True), said
    assert "\n" not in said
    assert len(said) < 300
