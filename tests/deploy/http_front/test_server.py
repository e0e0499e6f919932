"""The HTTP server's connections."""

from __future__ import annotations

import socket

from starlette.applications import Starlette

from trtstream.deploy.http_front.server import HttpServer


def test_an_answer_does_not_wait_for_acknowledgements() -> None:
    """With Nagle's algorithm, what is sent after an answer's head would wait for the client's kernel."""
    with (
        HttpServer(Starlette(), "127.0.0.1", 0) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 404")
        (connection,) = server._server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
