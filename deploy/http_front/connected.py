"""Work for a client that ends when the client leaves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

Outcome = TypeVar("Outcome")


async def while_connected(receive: Receive, work: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """What ``work()`` returns or raises. It is cancelled as soon as the client leaves, and ClientDisconnect raised.

    The request's body must have been read. anyio's task groups, which could do the same, take a sixth of a gateway's
    time for a short answer.
    """
    working = asyncio.current_task()
    assert working is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        working.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work()
    except asyncio.CancelledError:
        if not left:
            raise
        if sys.version_info >= (3, 11):
            working.uncancel()
        raise ClientDisconnect from None
    finally:
        watching.cancel()
