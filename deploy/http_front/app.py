"""The front as an ASGI application: probes, and Triton's HTTP service behind limits.

Paths under /v2 are Triton's. Triton does not notice that a client has left before it writes to it, so the front names
each request to the model, and says when its client has left.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

import httpx2 as httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trtstream.deploy.contract import REQUEST_NAME
from trtstream.deploy.http_front.answers import AWAY, WENT_AWAY, RefusedResponse, error_response, read_answer
from trtstream.deploy.http_front.body import Refusal, read_body
from trtstream.deploy.http_front.connected import while_connected
from trtstream.deploy.http_front.readiness import Readiness

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# Headers that concern one connection alone, and those that change because the body is read here.
NOT_PASSED = {
    b"connection", b"content-encoding", b"content-length", b"expect", b"host", b"keep-alive", b"proxy-authenticate",
    b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade",
}  # fmt: skip
GENERATE = re.compile(rb"/v2/models/[^/]+(?:/versions/[^/]+)?/generate(?:_stream)?")
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Upstream:
    """Triton's HTTP service at ``url``, whether it is ready, and how to end the turn of a request by its name."""

    url: str
    readiness: Readiness
    cancel: Callable[[str], None]


@dataclass(frozen=True)
class Front:
    triton: Upstream
    client: httpx.AsyncClient


def create_app(triton: Upstream) -> Starlette:
    """The application in front of ``triton``."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Triton does not end while a connection is kept open, used or not.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=triton.url, limits=limits, trust_env=False) as client:
            app.state.front = Front(triton, client)
            yield

    return Starlette(
        routes=[
            Route("/live", _live, methods=["GET"]),
            Route("/ready", _ready, methods=["GET"]),
            Route("/v2", _answer(_pass_on), methods=METHODS),
            Route("/v2/{path:path}", _answer(_pass_on), methods=METHODS),
            Route("/{path:path}", _answer(_nothing_here), methods=METHODS),
        ],
        lifespan=lifespan,
    )


def _answer(handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """``handle`` with every foreseen failure as a response."""

    async def answer(request: Request) -> Response:
        try:
            return await handle(request)
        except Refusal as refusal:
            return RefusedResponse(refusal)
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody reads it
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return error_response(HTTPStatus.SERVICE_UNAVAILABLE, AWAY)
        except httpx.TransportError:
            return error_response(HTTPStatus.BAD_GATEWAY, WENT_AWAY)

    return answer


async def _live(request: Request) -> Response:
    return JSONResponse({"live": True})


async def _ready(request: Request) -> Response:
    """Ready for turns: not while Triton starts or restarts, hangs or drains."""
    front: Front = request.app.state.front
    state = front.triton.readiness.state.value
    if front.triton.readiness.is_ready:
        try:
            answer = await front.client.get("/v2/health/ready", timeout=CONNECT_SECONDS)
            if answer.is_success:
                return JSONResponse({"ready": True, "state": state})
            state = "not ready"
        except httpx.TransportError:
            state = "not answering"
    return JSONResponse({"ready": False, "state": state}, HTTPStatus.SERVICE_UNAVAILABLE, headers={"retry-after": "1"})


async def _nothing_here(request: Request) -> Response:
    return error_response(
        HTTPStatus.NOT_FOUND, f"there is nothing at {request.url.path[:200]!r}; Triton's paths begin with /v2"
    )


async def _pass_on(request: Request) -> Response:
    """Triton's response, or as soon as the client leaves, the end of its turn."""
    front: Front = request.app.state.front
    body, name = await read_body(request), secrets.token_hex(16)
    if GENERATE.fullmatch(request.scope["raw_path"]):
        body = _named(body, name)

    async def ask() -> Response:
        response = await _send(front.client, request, body)
        return await read_answer(request.scope["raw_path"], response, lambda: front.triton.cancel(name))

    try:
        return await while_connected(request.receive, ask)
    except ClientDisconnect:
        front.triton.cancel(name)
        raise


def _named(body: bytes, name: str) -> bytes:
    """The JSON object ``body`` with a parameter that names the request to the model; other bodies stay as they are."""
    start = body.lstrip(b" \t\r\n")
    if start[:1] != b"{":
        return body
    rest = start[1:].lstrip(b" \t\r\n")
    return b'{"%s":"%s"%s%s' % (REQUEST_NAME.encode(), name.encode(), b"" if rest[:1] == b"}" else b",", rest)


async def _send(client: httpx.AsyncClient, request: Request, body: bytes) -> httpx.Response:
    """Pass the request on; the response begins with its headers, and is to be read and closed."""
    query = request.scope["query_string"]
    target = request.scope["raw_path"] + (b"?" + query if query else b"")
    headers = [(key, value) for key, value in request.scope["headers"] if key not in NOT_PASSED]
    passed = httpx.Request(
        request.method,
        client.base_url,
        headers=headers,
        content=body,
        # The path as the client wrote it. A turn has a deadline of its own.
        extensions={"target": target, "timeout": {"connect": CONNECT_SECONDS}},
    )
    return await client.send(passed, stream=True)
