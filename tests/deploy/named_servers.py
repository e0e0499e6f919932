"""Servers that say only which one they are, to see where a proxy sends a conversation."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc

from trtstream.deploy.client.triton import NO_PROXY
from trtstream.deploy.contract import routing_headers


class Named(grpc.GenericRpcHandler):
    """Answers every call with its name."""

    def __init__(self, name: int) -> None:
        self._name = b"%d" % name

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._name)


@dataclass
class NamedServer:
    """``ports`` are those of gRPC and HTTP; ``is_ready``, which may be set, is what its /ready says."""

    ports: tuple[int, int]
    is_ready: bool = True


@contextmanager
def named_server(name: int) -> Iterator[NamedServer]:
    """A server that answers every call with ``name``."""

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if named.is_ready else 503)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Named(name)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with ThreadingHTTPServer(("127.0.0.1", 0), Ready) as http:
        named = NamedServer((port, http.server_port))
        threading.Thread(target=http.serve_forever).start()
        try:
            yield named
        finally:
            http.shutdown()
            server.stop(None).wait()


def places(url: str, sessions: Sequence[str]) -> dict[str, int]:
    """The server of each session, by the proxy at ``url``."""
    with grpc.insecure_channel(url, NO_PROXY) as channel:
        ask = channel.unary_unary("/any/Call")
        return {one: int(ask(b"", metadata=[*routing_headers(one).items()], timeout=30)) for one in sessions}
