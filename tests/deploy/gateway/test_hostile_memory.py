"""Clients that mean harm: they take no memory that the server does not get back, and no place from those who ask."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

import pytest

from tests.deploy.server import Server
from tests.deploy.serving.processes import family
from trtstream.machine import resident_memory

pytestmark = pytest.mark.triton

ROUNDS = 3
FIRST_ROUND = 100  # in MB; the bodies that 200 clients announce would have 1,600
MEGABYTE = 1 << 20


class Front(NamedTuple):
    """Where a server takes questions, and what ``question(text)`` is there."""

    url: str
    path: str
    question: Callable[[str], dict[str, object]]

    def post(self, body: bytes) -> int:
        """The status of the answer."""
        with contextlib.closing(http.client.HTTPConnection(self.url, timeout=60)) as connection:
            connection.request("POST", self.path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            return response.status

    def connect(self) -> socket.socket:
        host, _, port = self.url.partition(":")
        return socket.create_connection((host, int(port)), timeout=60)


def gateway(server: Server) -> Front:
    def question(text: str) -> dict[str, object]:
        return {"model": "trtstream", "messages": [{"role": "user", "content": text}], "max_tokens": 1, "store": False}

    return Front(str(server.openai_url), "/v1/chat/completions", question)


def triton(server: Server) -> Front:
    return Front(server.http_url, "/v2/models/trtstream/generate", lambda text: {"text_input": text, "max_tokens": 1})


@contextmanager
def half_open(front: Front) -> Iterator[None]:
    """1,000 connections with nothing, half of the headers, or half of a body."""
    head = f"POST {front.path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n".encode()
    halves = (b"", head, head + b"Content-Length: 100\r\n\r\n{", head + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{")
    with ExitStack() as held:
        for number in range(1000):
            connection = held.enter_context(front.connect())
            with contextlib.suppress(ConnectionError):
                connection.sendall(halves[number % len(halves)])
        yield


@contextmanager
def slow_bodies(front: Front) -> Iterator[None]:
    """200 clients that announce 8 MB at once, and send a byte after a second."""
    head = f"POST {front.path} HTTP/1.1\r\nHost: a\r\nContent-Length: {8 * MEGABYTE}\r\n\r\n".encode()
    with ExitStack() as held:
        connections = [held.enter_context(front.connect()) for _ in range(200)]
        for data in (head, b"{"):
            for connection in connections:
                connection.sendall(data)
            time.sleep(1)
        yield


@contextmanager
def huge_bodies(front: Front) -> Iterator[None]:
    """As large as a body may be, and larger."""
    for size in (8 * MEGABYTE, 9 * MEGABYTE) * 6:
        assert front.post(b'"' + b"x" * (size - 2) + b'"') >= 400
    yield


@contextmanager
def huge_messages(front: Front) -> Iterator[None]:
    """Longer than a text may be."""
    for _ in range(24):
        assert front.post(json.dumps(front.question("x" * (MEGABYTE + 1))).encode()) == 400
    yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "growth"), [(half_open, 5), (slow_bodies, 5), (huge_bodies, 75), (huge_messages, 38)]
)
@pytest.mark.parametrize("front", [gateway, triton])
def test_memory_is_flat(
    server: Server,
    front: Callable[[Server], Front],
    attack: Callable[[Front], AbstractContextManager[None]],
    growth: float,
) -> None:
    """The first round fills what the allocators keep; those after it add less than ``growth``, in MB.

    That is half of what they would add if nothing were given back: 10 for the connections of three rounds (17 KB each)
    or more, 150 for the bodies that are taken, 75 for the texts. Measured were 1.7, 35 (each of Triton's threads keeps
    one for itself) and 8.
    """
    asked, processes = front(server), [server.process.pid, *family(server.process.pid)]
    hello = json.dumps(asked.question("Hello")).encode()
    assert asked.post(hello) == 200
    memory = [sum(map(resident_memory, processes)) / 1e6]
    for _ in range(1 + ROUNDS):
        with attack(asked):
            assert asked.post(hello) == 200
            memory.append(sum(map(resident_memory, processes)) / 1e6)
    before, first, *others = memory
    assert first - before < FIRST_ROUND
    assert max(others) - first < growth
