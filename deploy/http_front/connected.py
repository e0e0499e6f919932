"""Work for a client that ends when the client leaves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request

Outcome = TypeVar("Outcome")


async def while_connected(request: Request, work: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """What ``work()`` returns or raises. It is cancelled as soon as the client leaves, and ClientDisconnect raised.

    The request's body must have been read.
    """
    outcome: list[Outcome] = []
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            outcome.append(await work())
        except Exception as error:  # not raised here: the group would put it into another
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not outcome:
        raise ClientDisconnect
    return outcome[0]
