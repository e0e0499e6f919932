"""Clients that mean harm: the gateway answers everybody else meanwhile, and says what is wrong with a request."""

from __future__ import annotations

import contextlib
import http.client
import json

import pytest

from tests.deploy.server import Server

pytestmark = pytest.mark.triton


def post(server: Server, body: bytes) -> tuple[int, str]:
    """The status and the error's message of a chat completion."""
    connection = http.client.HTTPConnection(str(server.openai_url), timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())["error"]["message"]


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
        (b'{"model": "trtstream", "\\udc00": 1}', 400, "lone surrogate"),
        (b'{"model": "\xed\xa0\x80"}', 400, "not JSON"),
        ('{"model": "trtstream"}'.encode("utf-16"), 400, "not JSON"),
        (
            b'{"model": "trtstream", "messages": [{"role": "user", "content": ""}], "temperature": 1'
            + b"0" * 400
            + b"}",
            400,
            "temperature is 1000",
        ),
        (
            b'{"model": "trtstream", "messages": [{"role": "user", "content": ""}], "temperature": 1e39}',
            400,
            "temperature is 1e+39",
        ),
        (b'{"model": "trtstream", "n": true}', 400, "n is not supported with this value here; leave it out, or send 1"),
        (
            b'{"model": "trtstream", "messages": [{"role": "user", "content": [{"type": [], "text": ""}]}]}',
            400,
            "a part of the type '[]'",
        ),
        (b"\xff\xfe", 400, "not JSON"),
    ],
    ids=[
        "deep",
        "deep messages",
        "many messages",
        "wide",
        "large",
        "long number",
        "surrogate",
        "surrogate in a name",
        "surrogate in UTF-8",
        "UTF-16",
        "number past floats",
        "number past float32",
        "true for 1",
        "list for a type",
        "not UTF-8",
    ],
)
def test_hostile_bodies(server: Server, body: bytes, status: int, message: str) -> None:
    found, said = post(server, body)
    assert (found, message in said) == (status, True), said
    assert "\n" not in said
    assert len(said) < 300
