"""Responses to clients: Triton's own, with statuses for the model's errors, and the front's errors in its shape."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from http import HTTPStatus

import anyio
import httpx2 as httpx
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from trtstream.deploy.contract import CODE, NO_INPUTS
from trtstream.deploy.http_front.body import Refusal, discard_body
from trtstream.deploy.http_front.connected import while_connected
from trtstream.runtime.request_fields import ERROR_CODES

NOT_RETURNED = {b"connection", b"keep-alive", b"transfer-encoding"}
AWAY = "the server is starting or restarting; try again"
WENT_AWAY = "the server went away in the middle of an answer; its sessions may be lost"
ONE_RESPONSE = "generate is for one response: use generate_stream for a stream, or leave stream out"
IN_OUR_WORDS = {
    b"generate expects model to produce exactly 1 response": ONE_RESPONSE,
    NO_INPUTS[0].encode(): NO_INPUTS[1],
}
ERROR = b'{"error":'
ERROR_EVENT = b"data: " + ERROR


def error_response(status: int, message: str) -> JSONResponse:
    """An error in Triton's shape."""
    retry = {"retry-after": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return JSONResponse({"error": message}, status, headers=retry)


class RefusedResponse(JSONResponse):
    """The answer to a request that is not passed on. Its connection ends, as the rest of its body is not wanted.

    ``error`` is what it says: the refusal's message, unless given.
    """

    def __init__(self, refusal: Refusal, error: object = None) -> None:
        super().__init__({"error": error or refusal.message}, refusal.status, headers={"connection": "close"})
        self._unread = refusal.unread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        if self._unread:
            await discard_body(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def read_answer(path: bytes, triton: httpx.Response, leave: Callable[[], None]) -> Response:
    """The response to send for Triton's response, which this takes over.

    An answer to `generate` is read completely, the start of one to `generate_stream` so far that an error's code can
    decide the status. ``leave()`` is called if the client leaves before the end. Raises httpx.TransportError.
    """
    relay = Relay(triton, leave)
    try:
        if path.endswith(b"/generate"):
            body = await relay.read()
            if words := _our_words(body, ERROR):
                return error_response(HTTPStatus.BAD_REQUEST, words)
            return relay.complete(_status(body, ERROR) or triton.status_code, body)
        if path.endswith(b"/generate_stream"):
            await relay.peek()
            if words := _our_words(relay.first, ERROR_EVENT):
                await relay.close()
                return error_response(HTTPStatus.BAD_REQUEST, words)
            if status := _status(relay.first, ERROR_EVENT):
                event = await relay.read()
                answer = error_response(status, "")
                answer.body = event.partition(b"\n")[0].removeprefix(b"data: ")
                answer.headers["content-length"] = str(len(answer.body))
                return answer
    except BaseException:
        await relay.close()
        raise
    return relay


def _our_words(body: bytes, start: bytes) -> str | None:
    """What an error of Triton's own says in our words, if it has any."""
    return next((ours for theirs, ours in IN_OUR_WORDS.items() if body.startswith(start) and theirs in body), None)


def _status(body: bytes, start: bytes) -> HTTPStatus | None:
    """The status of the code with which an error begins; None for what is not an error or has no code."""
    code = CODE.search(body.decode(errors="replace")) if body.startswith(start) else None
    return ERROR_CODES[code[1]].status if code else None


class Relay(StreamingResponse):
    """Triton's response as it comes. ``leave()`` is called if the client leaves before its end."""

    def __init__(self, triton: httpx.Response, leave: Callable[[], None]) -> None:
        self.first = b""
        self._triton, self._leave = triton, leave
        self._chunks: AsyncIterator[bytes] = triton.aiter_raw()
        self._ended = False
        super().__init__(self._all(), triton.status_code)
        self.raw_headers = [
            (name.lower(), value) for name, value in triton.headers.raw if name.lower() not in NOT_RETURNED
        ]

    async def peek(self) -> None:
        """Wait for the first bytes."""
        self.first = await anext(self._chunks, b"")

    async def read(self) -> bytes:
        """All of the body."""
        body = b"".join([self.first, *[chunk async for chunk in self._chunks]])
        await self.close()
        return body

    def complete(self, status: int, body: bytes) -> Response:
        """A response with Triton's headers, in one piece."""
        answer = Response(body, status)
        answer.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        answer.raw_headers.append((b"content-length", b"%d" % len(body)))
        return answer

    async def close(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._triton.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientDisconnect):
                await while_connected(receive, lambda: self.stream_response(send))
        finally:
            if not self._ended:
                self._leave()
            await self.close()

    async def _all(self) -> AsyncGenerator[bytes, None]:
        yield self.first
        try:
            async for chunk in self._chunks:
                yield chunk
        except httpx.TransportError:
            if not self._triton.headers.get("content-type", "").startswith("text/event-stream"):
                raise
            yield b'data: {"error":"%s"}\n\n' % WENT_AWAY.encode()
        self._ended = True
