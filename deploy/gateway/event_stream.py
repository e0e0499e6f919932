"""Server-sent events whose source ends when the client leaves."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

import anyio
from openai import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from trtstream.deploy.http_front.connected import while_connected

DONE = b"data: [DONE]\n\n"


def event(data: BaseModel, name: str = "") -> bytes:
    """One event, without the fields that were not set."""
    start = f"event: {name}\n" if name else ""
    return f"{start}data: {data.model_dump_json(exclude_unset=True)}\n\n".encode()


class EventStream(StreamingResponse):
    """``events`` as they come; the first are there at once. The generator is closed however the response ends."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """As Starlette's, but the head is sent right before the first events, so that both leave in one piece."""
        head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        async for events in self._events:
            if head:
                await send(head)
                head = {}
            await send({"type": "http.response.body", "body": events, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientDisconnect):
                await while_connected(receive, lambda: self.stream_response(send))
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()
