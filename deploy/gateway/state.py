"""What a gateway's routes share."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.requests import Request

from trtstream.deploy.gateway.admission import Shares
from trtstream.deploy.gateway.errors import AWAY, ApiError
from trtstream.deploy.gateway.parameters import Body, read_object
from trtstream.deploy.gateway.progress import Progress
from trtstream.deploy.gateway.retries import run_until_answered
from trtstream.deploy.gateway.sessions import Sessions
from trtstream.deploy.gateway.store import Store
from trtstream.deploy.gateway.triton import TritonAddress, TritonService
from trtstream.deploy.gateway.turns import Outputs
from trtstream.deploy.http_front.body import read_body
from trtstream.deploy.http_front.readiness import Readiness

MAX_MEMBERS = 1 << 16  # of all objects in a request's JSON: a conversation's messages have some each
MAX_KEPT = 256  # responses that are over


@dataclass(frozen=True)
class Upstream:
    """Where Triton is, the names of its models, whether it is ready, and the URL of its session store."""

    triton: TritonAddress
    models: list[str]
    readiness: Readiness
    session_store: str | None = None


class Responses:
    """The responses that are made here, by tenant and id, and some that are over and not in the store."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Progress] = OrderedDict()
        self._tasks: dict[Progress, asyncio.Task[None]] = {}

    def add(self, tenant: str, progress: Progress, task: asyncio.Task[None]) -> None:
        self._known[tenant, progress.id] = progress
        self._tasks[progress] = task
        task.add_done_callback(lambda _: self._tasks.pop(progress))

    def get(self, tenant: str, response_id: str) -> Progress | None:
        return self._known.get((tenant, response_id))

    def remove(self, tenant: str, response_id: str) -> None:
        self._known.pop((tenant, response_id), None)

    def trim(self) -> None:
        """Forget those that were over first."""
        over = [key for key, progress in self._known.items() if progress.is_over]
        for key in over[: max(len(over) - MAX_KEPT, 0)]:
            del self._known[key]

    async def cancel(self, progress: Progress) -> None:
        """End a response that is made here; a no-op for one that is over."""
        task = self._tasks.get(progress)
        if task is not None and not progress.is_over:
            task.cancel()
            await asyncio.wait([task])


@dataclass(frozen=True)
class Gateway:
    upstream: Upstream
    triton: TritonService
    store: Store
    shares: Shares
    sessions: Sessions = field(default_factory=Sessions)
    responses: Responses = field(default_factory=Responses)
    started: int = field(default_factory=lambda: int(time.time()))

    async def run(self, tenant: str, model: str, inputs: dict[str, Any]) -> Outputs:
        """`run_until_answered`, as one of the tenant's turns. Raises ApiError where that is one too many."""
        turn, readiness = {**inputs, "tenant": tenant}, self.upstream.readiness
        with self.shares.turn(tenant):
            async with contextlib.aclosing(run_until_answered(self.triton, model, turn, readiness)) as outputs:
                async for output in outputs:
                    yield output


def gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def tenant_of(request: Request) -> str:
    """Whose request it is."""
    return str(request.scope.get("tenant", ""))


async def read_parameters(request: Request) -> Body:
    """The parameters in a request's body."""
    return read_object(await read_body(request, MAX_MEMBERS))


def require_ready(gateway: Gateway) -> None:
    if not gateway.upstream.readiness.takes_turns:
        raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, AWAY, code="unavailable")
