"""Reads a request's body within limits, so that nothing reaches Triton that it cannot take."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import anyio
from starlette.requests import Request
from starlette.types import Receive

from trtstream.deploy.http_front.json_shape import JsonShape
from trtstream.deploy.http_front.limits import (
    BODY_SECONDS,
    LINGER_SECONDS,
    MAX_BODY_BYTES,
    MAX_JSON_DEPTH,
    MAX_JSON_MEMBERS,
)

AUTOMATIC_FORMAT = 32 + zlib.MAX_WBITS  # zlib or gzip, by their first bytes
JSON_LENGTH = "inference-header-content-length"  # of the JSON before binary tensors


@dataclass
class Refusal(Exception):
    """A request that is not passed on: its HTTP status, one line that names the limit, whether its body goes on."""

    status: int
    message: str
    unread: bool = False


async def read_body(request: Request, max_members: int = MAX_JSON_MEMBERS) -> bytes:
    """The request's body, expanded if it is compressed. Raises Refusal for one that is beyond a limit."""
    try:
        with anyio.fail_after(BODY_SECONDS):
            body = await _receive(request)
    except TimeoutError:
        raise Refusal(408, f"the request's body took longer than {BODY_SECONDS:g} s", unread=True) from None
    body = _expand(body, request.headers.get("content-encoding", "identity").strip().lower())
    await check_json(body[: _json_bytes(request.headers.get(JSON_LENGTH), len(body))], max_members)
    return body


async def check_json(text: bytes, max_members: int) -> None:
    """Raise Refusal for JSON that is too deep or too wide. Others are served between the parts of a large text."""
    if text.count(b"[") + text.count(b"{") <= MAX_JSON_DEPTH and text.count(b":") <= max_members:
        return  # as almost every request: it has not even the characters for it
    shape = JsonShape()
    for start in range(0, len(text), 1 << 20):
        shape.feed(text[start : start + (1 << 20)])
        if shape.depth > MAX_JSON_DEPTH:
            raise Refusal(400, f"the request's JSON is nested more than {MAX_JSON_DEPTH} deep, which is the limit")
        if shape.members > max_members:
            raise Refusal(400, f"the request's JSON has more than {max_members} members, which is the limit")
        await anyio.sleep(0)


async def discard_body(receive: Receive) -> None:
    """Read what a client still sends, for a while: closing the connection under it would take its answer away."""
    with anyio.move_on_after(LINGER_SECONDS):
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass


def _json_bytes(header: str | None, body_bytes: int) -> int:
    """How many bytes of the body are JSON: all, unless a header says that binary tensors follow."""
    if header is None:
        return body_bytes
    if not (header.isascii() and header.isdecimal() and len(header) <= 10 and int(header) <= body_bytes):
        raise Refusal(400, f"Inference-Header-Content-Length is {header[:40]!r}; the body has {body_bytes} bytes")
    return int(header)


async def _receive(request: Request) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _expand(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise Refusal(415, f"content-encoding {encoding[:40]!r} is not supported; send gzip, deflate or none")
    expanding = zlib.decompressobj(AUTOMATIC_FORMAT)
    try:
        expanded = expanding.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise Refusal(400, f"the request's body is not valid {encoding} ({error})") from None
    if len(expanded) > MAX_BODY_BYTES:
        raise Refusal(413, f"the request's expanded body has more than {MAX_BODY_BYTES} bytes, which is the limit")
    if not expanding.eof:
        raise Refusal(400, f"the request's {encoding} body ends too early")
    return expanded


def _too_large() -> Refusal:
    return Refusal(413, f"the request's body has more than {MAX_BODY_BYTES} bytes, which is the limit", unread=True)
