"""The HTTP front before a real Triton: what it passes on unchanged, what it adds, and what it keeps from Triton."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import socket
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.deploy.serving.processes import family
from tests.deploy.serving.streams import MODEL, Stream, post, text
from trtstream.deploy.http_front.limits import MAX_BODY_BYTES, MAX_JSON_DEPTH, MAX_JSON_MEMBERS, WRITE_SECONDS

pytestmark = pytest.mark.triton

GENERATE = f"/v2/models/{MODEL}/generate"
QUESTION = {"text_input": "Hello", "max_tokens": 8, "ignore_eos": True}


def request(
    address: str, path: str, body: bytes | None = None, method: str = "POST", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of one request."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()


def error(answer: tuple[int, bytes, dict[str, str]]) -> tuple[int, str]:
    return answer[0], json.loads(answer[1])["error"]


def raw(address: str, data: bytes) -> bytes:
    """All that the server answers to ``data`` until it closes the connection."""
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
    return received


@pytest.fixture
def triton(server: Any) -> str:
    """Triton's own HTTP service, behind the front."""
    commands = [Path(f"/proc/{one}/cmdline").read_bytes().decode() for one in family(server.process.pid)]
    (port,) = {match[1] for command in commands if (match := re.search(r"--http-port=(\d+)", command))}
    return f"127.0.0.1:{port}"


@pytest.fixture
def undisturbed(server: Any) -> Iterator[None]:
    """What happens in the test changes nothing for a stream that runs all the while, nor for the next one."""
    probe = Stream(server.grpc_url)
    question = {"text_input": "probe", "max_tokens": 500, "ignore_eos": True, "repetition_penalty": 1.3}
    expected = text(probe.ask(**question))
    probe.send(**question, stream=True)
    yield
    assert text(*probe.all()) == expected
    assert text(probe.ask(**question)) == expected
    probe.close()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v2", None),
        ("GET", "/v2/health/ready", None),
        ("HEAD", "/v2/health/ready", None),
        ("GET", f"/v2/models/{MODEL}", None),
        ("GET", f"/v2/models/{MODEL}/config", None),
        ("GET", "/v2/models/nobody", None),
        ("GET", "/v2/models/a%2Fb?x=%20y", None),
        ("GET", "/v2/nothing", None),
        ("POST", "/v2/models/nobody/generate", QUESTION),
        ("POST", GENERATE, QUESTION),
        ("POST", f"/v2/models/{MODEL}/versions/1/generate", {**QUESTION, "return_log_probs": True}),
        ("POST", f"/v2/models/{MODEL}/generate_stream", {**QUESTION, "stream": True}),
        ("POST", f"/v2/models/{MODEL}/generate_stream", {"text_input": "a", "max_tokens": "many"}),
        ("POST", f"/v2/models/{MODEL}/%67enerate", QUESTION),
        ("POST", f"/v2/models/{MODEL}/../{MODEL}/generate", QUESTION),
        ("POST", f"/v2/models/{MODEL}/infer", QUESTION),
        ("DELETE", GENERATE, None),
    ],
)
def test_answers_are_tritons_own(server: Any, triton: str, method: str, path: str, body: dict[str, Any] | None) -> None:
    data = None if body is None else json.dumps(body).encode()
    through = request(server.http_url, path, data, method)
    direct = request(triton, path, data, method)
    assert through[:2] == direct[:2]
    assert {**through[2], **direct[2]} == {**direct[2], **through[2]} or path.endswith("generate")
    assert through[2].get("content-type") == direct[2].get("content-type")


def test_probes(server: Any) -> None:
    assert request(server.http_url, "/live", method="GET")[:2] == (200, b'{"live":true}')
    assert request(server.http_url, "/ready", method="GET")[:2] == (200, b'{"ready":true,"state":"ready"}')
    assert error(request(server.http_url, "/", method="GET"))[0] == 404


def test_a_stream_asked_of_generate(server: Any) -> None:
    status, message = error(request(server.http_url, GENERATE, json.dumps({**QUESTION, "stream": True}).encode()))
    assert status == 400
    assert "use generate_stream" in message


@pytest.mark.parametrize("endpoint", [GENERATE, f"{GENERATE}_stream"])
def test_a_request_without_inputs(server: Any, endpoint: str) -> None:
    status, message = error(request(server.http_url, endpoint, b'{"sequence_id": 9, "sequence_end": true}'))
    assert status == 400
    assert message.startswith("the request has no inputs; send text_input")


def test_an_answer_may_quote_an_error(server: Any) -> None:
    quoted = json.dumps({**QUESTION, "id": "request has 0 inputs"}).encode()
    assert request(server.http_url, GENERATE, quoted)[0] == 200


def test_errors_have_the_status_of_their_code(server: Any) -> None:
    def ask(**inputs: Any) -> tuple[int, str]:
        return error(request(server.http_url, GENERATE, json.dumps({"text_input": "a", **inputs}).encode()))

    status, message = ask(max_tokens=0)
    assert (status, message[:10]) == (400, "[invalid] ")
    status, message = ask(session_id="nobody's", session_tokens=5)
    assert (status, message[:12]) == (404, "[not_found] ")
    status, message = ask(timeout=1, max_tokens=1000, ignore_eos=True)
    assert (status, message[:10]) == (504, "[timeout] ")
    stream = request(
        server.http_url, f"{GENERATE}_stream", b'{"text_input": "a", "session_id": "nobody\'s", "session_tokens": 5}'
    )
    assert error(stream)[0] == 404
    assert stream[2]["content-type"] == "application/json"


@pytest.mark.parametrize("protocol", ["generate", "generate_stream"])
def test_a_client_that_leaves_ends_its_turn(server: Any, protocol: str) -> None:
    """Its session is busy until then, and nobody reads its answer of a million tokens."""
    body = {"text_input": "a", "max_tokens": 1_000_000, "ignore_eos": True}
    connections = []
    for number in range(4):  # all lanes
        connection = http.client.HTTPConnection(server.http_url, timeout=60)
        data = json.dumps({**body, "session_id": f"left-{protocol}-{number}"})
        connection.request("POST", f"/v2/models/{MODEL}/{protocol}", data)
        connections.append(connection)
    time.sleep(0.5)  # all are running; one that is not yet ends before its first token
    for connection in connections:
        assert connection.sock is not None
        connection.sock.close()
        connection.close()
    for number in range(4):
        again = json.dumps({"text_input": "b", "session_id": f"left-{protocol}-{number}", "max_tokens": 1}).encode()
        for _ in range(200):
            status, answer, _ = request(server.http_url, GENERATE, again)
            if status == 200:
                break
            assert status == 429, answer
            time.sleep(0.1)
        assert status == 200, answer


HOSTILE = {
    "deep": (b"[" * 100_000, 400, f"nested more than {MAX_JSON_DEPTH} deep"),
    "deep objects": (b'{"a":' * 1_600_000, 400, "nested more than"),
    "a little deep": (b'{"text_input": "a", "stop_words": ' + b"[" * 65 + b"]" * 65 + b"}", 400, "nested more than"),
    "very deep": (b"[" * 10_000_000, 413, f"more than {MAX_BODY_BYTES} bytes"),
    "huge": (b"x" * (MAX_BODY_BYTES + 1), 413, f"more than {MAX_BODY_BYTES} bytes"),
    "wide": (b"{" + b",".join(b'"%d":1' % i for i in range(600_000)) + b"}", 400, f"more than {MAX_JSON_MEMBERS} "),
    "escapes": (b'{"text_input": "' + b'\\"' * 4_000_000, None, ""),
    "a million numbers": (b'{"input_ids": [' + b"7," * 3_000_000 + b"7]}", None, ""),
    "surrogates": (b'{"text_input": "' + b"\\ud800" * 100_000 + b'"}', None, ""),
    "not text": (b"\xff\xfe\x00", None, ""),
    "empty": (b"", None, ""),
}


@pytest.mark.parametrize("endpoint", ["generate", "generate_stream", "infer"])
def test_hostile_bodies(server: Any, undisturbed: None, endpoint: str) -> None:
    for name, (body, status, message) in HOSTILE.items():
        found, answer, _ = request(server.http_url, f"/v2/models/{MODEL}/{endpoint}", body)
        assert 400 <= found <= 501, (name, found, answer[:200])
        assert found == (status or found), (name, answer[:200])
        line = json.loads(answer.removeprefix(b"data: "))["error"]
        assert message in line, name
        assert "\n" not in line, name


def test_hostile_encodings(server: Any, undisturbed: None) -> None:
    bomb = gzip.compress(b"[" * (200 << 20), compresslevel=9)
    assert error(request(server.http_url, GENERATE, bomb, content_encoding="gzip"))[0] == 413
    deep = gzip.compress(b"[" * 100_000)
    assert error(request(server.http_url, GENERATE, deep, content_encoding="gzip"))[0] == 400
    assert error(request(server.http_url, GENERATE, b"{}", content_encoding="br"))[0] == 415
    assert error(request(server.http_url, GENERATE, b"no gzip", content_encoding="gzip"))[0] == 400
    question = json.dumps(QUESTION).encode()
    plain = request(server.http_url, GENERATE, question)
    for encoding, compressed in (("gzip", gzip.compress(question)), ("deflate", zlib.compress(question))):
        assert request(server.http_url, GENERATE, compressed, content_encoding=encoding)[:2] == plain[:2]
        assert error(request(server.http_url, GENERATE, compressed[:-9], content_encoding=encoding))[0] == 400


def test_a_body_without_an_announced_length(server: Any, undisturbed: None) -> None:
    """Chunked, and far beyond the limit: the client that sends all of it still gets its answer."""
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    answer = raw(server.http_url, head + chunk * (4 * MAX_BODY_BYTES >> 20) + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"8388608 bytes, which is the limit" in answer


@pytest.mark.slow
def test_a_client_that_does_not_read_is_left(server: Any) -> None:
    """It asks for the model's configuration, sent ahead many times, and reads nothing: its connection ends."""
    one = f"GET /v2/models/{MODEL}/config HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    host, _, port = server.http_url.partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(one * 3000)
        time.sleep(WRITE_SECONDS + 15)
        connection.sendall(b"x")  # the answer to this says that nobody is there
        time.sleep(1)
        with pytest.raises(ConnectionError):
            connection.sendall(b"x")


MALFORMED = [
    b"\x00" * 1000,
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
    b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    b"POST /v2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf",
    b"POST /v2/models HTTP/1.1\r\nHost: a\r\nInference-Header-Content-Length: 9\r\nContent-Length: 2\r\n\r\n[[",
]


def test_malformed_requests(server: Any, undisturbed: None) -> None:
    for data in MALFORMED:
        head, _, body = raw(server.http_url, data).partition(b"\r\n\r\n")
        assert b" 200 " not in head.partition(b"\r\n")[0], data[:80]
        assert not head or "error" in json.loads(body), (data[:80], head)


def test_requests_that_are_sent_ahead(server: Any) -> None:
    one = b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n"
    received = raw(server.http_url, 50 * one + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert received.count(b'{"live":true}') == 51


def test_slow_clients_are_left(server: Any, undisturbed: None) -> None:
    """One that says nothing, one that stops in its headers, one in the headers of its second request."""
    host, _, port = server.http_url.partition(":")
    begun = b"GET /live HTTP/1.1\r\nHost: a\r\n"
    connections = []
    for data in (b"", begun, begun + b"\r\n" + begun):
        connection = socket.create_connection((host, int(port)), timeout=60)
        connection.sendall(data)
        connections.append(connection)

    def read_to_the_end(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            pass

    readers = [threading.Thread(target=read_to_the_end, args=(one,), daemon=True) for one in connections]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
        assert not reader.is_alive()
    for connection in connections:
        connection.close()


def test_hostile_protobufs(server: Any, undisturbed: None) -> None:
    """Groups nested a million deep, a message of a gigabyte's announcement, noise: to Triton's gRPC itself."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for message in (b"\x0b" * 1_000_000, b"\x0a\xff\xff\xff\xff\x03", bytes(range(256)) * 100, b""):
            with pytest.raises(grpc.RpcError):
                call(message, timeout=30)


def test_connections_that_ask_nothing_keep_nobody_out(server: Any, undisturbed: None) -> None:
    """More than the front takes: those that have waited longest end."""
    host, _, port = server.http_url.partition(":")
    with contextlib.ExitStack() as held:
        for _ in range(600):
            held.enter_context(socket.create_connection((host, int(port)), timeout=60))
        assert request(server.http_url, "/live", method="GET")[0] == 200


def test_urllib_reads_an_answer(server: Any) -> None:
    assert json.load(post(server, "generate", QUESTION))["num_output_tokens"] == 8
    with urllib.request.urlopen(f"http://{server.http_url}/v2/health/ready", timeout=10) as answer:
        assert answer.status == 200
