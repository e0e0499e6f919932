"""Work for a client: it ends when the client leaves, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from trtstream.deploy.http_front.connected import while_connected


class Receiving:
    """A client that stays until ``leave`` is set. Counts those who wait for its messages."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()
        self.waiting = 0

    async def __call__(self) -> Message:
        self.waiting += 1
        try:
            await self.leave.wait()
        finally:
            self.waiting -= 1
        return {"type": "http.disconnect"}


def run(case: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(case, 10))


def test_a_client_that_stays_gets_what_the_work_returns_or_raises() -> None:
    async def fails() -> str:
        await asyncio.sleep(0)
        raise KeyError("of the work")

    async def case() -> None:
        client = Receiving()
        assert await while_connected(client, lambda: asyncio.sleep(0.01, "done")) == "done"
        with pytest.raises(KeyError, match="of the work"):
            await while_connected(client, fails)
        await asyncio.sleep(0)
        assert client.waiting == 0

    run(case())


def test_work_ends_with_its_client_and_may_still_wait_while_it_cleans_up() -> None:
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(True)

    async def case() -> None:
        client = Receiving()
        asyncio.get_running_loop().call_later(0.01, client.leave.set)
        with pytest.raises(ClientDisconnect):
            await while_connected(client, work)
        assert cleaned == [True]
        await asyncio.sleep(0)  # this task is not cancelled
        async with asyncio.Lock():
            pass

    run(case())


def test_a_server_that_stops_cancels_the_work_as_itself() -> None:
    async def case() -> None:
        client = Receiving()
        task = asyncio.create_task(while_connected(client, lambda: asyncio.sleep(60)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert client.waiting == 0

    run(case())
