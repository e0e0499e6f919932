"""Which server Envoy sends a conversation to, with servers that say only which one they are."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc

from tests.deploy.envoy import Envoy
from trtstream.deploy.client.triton import NO_PROXY
from trtstream.deploy.contract import routing_headers

SESSIONS = [f"session {number}" for number in range(300)]


class Named(grpc.GenericRpcHandler):
    """Answers every call with its name."""

    def __init__(self, name: int) -> None:
        self._name = b"%d" % name

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._name)


@contextmanager
def named_server(name: int) -> Iterator[tuple[int, int, list[int]]]:
    """(Its gRPC port, its HTTP port, a list with the status of its /ready)."""
    status = [200]

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Named(name)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with ThreadingHTTPServer(("127.0.0.1", 0), Ready) as http:
        threading.Thread(target=http.serve_forever).start()
        try:
            yield port, http.server_port, status
        finally:
            http.shutdown()
            server.stop(None).wait()


def places(url: str) -> dict[str, int]:
    """The server of each session."""
    with grpc.insecure_channel(url, NO_PROXY) as channel:
        ask = channel.unary_unary("/any/Call")
        return {one: int(ask(b"", metadata=[*routing_headers(one).items()], timeout=30)) for one in SESSIONS}


def test_a_session_stays_until_its_server_leaves(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(named_server(number)) for number in range(3)]
        envoy = Envoy(tmp_path, [(grpc, http) for grpc, http, _ in servers])
        stack.callback(envoy.stop)
        envoy.wait_for(3)
        before = places(envoy.url)
        assert places(envoy.url) == before
        spread = Counter(before.values())
        assert all(0.2 < spread[number] / len(SESSIONS) < 0.47 for number in range(3)), spread
        servers[1][2][0] = 503
        envoy.wait_for(2)
        after = places(envoy.url)
        moved = [one for one in SESSIONS if after[one] != before[one]]
        assert len(moved) < 1.2 * spread[1]  # those that must, and few others
        assert 1 not in after.values()
        servers[1][2][0] = 200
        envoy.wait_for(3)
        assert places(envoy.url) == before
