"""The order in which a stream of events is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.types import Message

from trtstream.deploy.gateway.event_stream import EventStream


def test_the_head_is_sent_with_the_first_events() -> None:
    """And not before: what is written to a socket at the same time is one packet."""

    async def run() -> tuple[list[str], list[str]]:
        sent: list[Message] = []
        may_begin, went_on = asyncio.Event(), asyncio.Event()

        async def events() -> AsyncGenerator[bytes, None]:
            await may_begin.wait()
            yield b"first"
            went_on.set()
            yield b"second"

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            await asyncio.sleep(3600)
            raise AssertionError

        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        answer = asyncio.create_task(EventStream(events())(scope, receive, send))
        await asyncio.sleep(0.01)
        before = [message["type"] for message in sent]
        may_begin.set()
        await answer
        assert went_on.is_set()
        return before, [str(message.get("body", message["type"])) for message in sent]

    before, sent = asyncio.run(run())
    assert before == []
    assert sent == ["http.response.start", "b'first'", "b'second'", "b''"]
