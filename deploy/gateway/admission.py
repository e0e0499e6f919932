"""Who a request is from, and how much of a tenant's share is left: keys, limits, request ids, the access log."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trtstream.deploy.gateway.access import LOGGER, Limits
from trtstream.deploy.gateway.errors import ApiError
from trtstream.deploy.gateway.keys import ApiKey, KeyFile
from trtstream.deploy.gateway.request_counts import RequestCounts
from trtstream.errors import TrtstreamError

PROTECTED = "/v1/"
access_log = logging.getLogger(LOGGER)


class Shares:
    """What each tenant has used of its limits. Belongs to one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._turns: defaultdict[str, int] = defaultdict(int)
        self._left: dict[str, tuple[float, float]] = {}  # requests, at a time

    @property
    def running(self) -> int:
        """Turns of all tenants."""
        return sum(self._turns.values())

    def take_request(self, tenant: str) -> None:
        """Raises ApiError for a request beyond the rate: a bucket of a minute's requests, refilled evenly."""
        most = self._limits.requests_per_minute
        if most is None:
            return
        now = time.monotonic()
        left, before = self._left.get(tenant, (float(most), now))
        left = min(most, left + (now - before) * most / 60)
        if left < 1:
            wait = max(round((1 - left) * 60 / most), 1)
            message = f"more than {most} requests in a minute; wait {wait} s"
            raise ApiError(HTTPStatus.TOO_MANY_REQUESTS, message, code="rate_limit_exceeded", retry_after=wait)
        self._left[tenant] = left - 1, now

    @contextmanager
    def turn(self, tenant: str) -> Iterator[None]:
        """While a turn runs. Raises ApiError for one too many."""
        if self._turns[tenant] >= self._limits.max_turns:
            message = f"{self._limits.max_turns} answers are being made, which is your limit; wait for one to end"
            raise ApiError(HTTPStatus.TOO_MANY_REQUESTS, message, code="busy", retry_after=1)
        self._turns[tenant] += 1
        try:
            yield
        finally:
            self._turns[tenant] -= 1
            if not self._turns[tenant]:
                del self._turns[tenant]


class Admission:
    """An ASGI application in front of the gateway's. ``keys`` None lets everybody in, as the tenant without a name.

    It adds ``tenant`` to a request's scope and ``x-request-id`` to its response, and logs a line of JSON for each, in
    which no text, id or key appears. ``counts`` has them all.
    """

    def __init__(self, app: ASGIApp, keys: KeyFile | None, shares: Shares, counts: RequestCounts) -> None:
        self._app, self._keys, self._shares, self._counts = app, keys, shares, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, started = "req_" + secrets.token_hex(12), time.monotonic()
        status: int | None = None
        key: ApiKey | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            if scope["path"].startswith(PROTECTED) and scope["method"] != "OPTIONS":
                key = self._authenticate(scope)
                scope["tenant"] = "" if key is None else key.tenant
                self._shares.take_request(scope["tenant"])
            await self._app(scope, receive, send_with_id)
        except ApiError as error:
            await error.response()(scope, receive, send_with_id)
        finally:
            seconds, route = time.monotonic() - started, getattr(scope.get("route"), "path", None)
            self._counts.add(scope["method"], route, status, seconds)
            _log(scope, route, request_id, key, status, seconds)

    def _authenticate(self, scope: Scope) -> ApiKey | None:
        if self._keys is None:
            return None
        scheme, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
        try:
            key = self._keys.find(secret.strip()) if scheme.lower() == "bearer" else None
        except TrtstreamError as error:  # its file is away
            access_log.error("%s", error)
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "no keys can be checked now", code="unavailable") from None
        if key is None:
            message = "the API key is missing or not valid; send it as `Authorization: Bearer KEY`"
            raise ApiError(HTTPStatus.UNAUTHORIZED, message, code="invalid_api_key")
        return key


def _log(
    scope: Scope, route: str | None, request_id: str, key: ApiKey | None, status: int | None, seconds: float
) -> None:
    """``route`` has no ids, which are keys to conversations."""
    values: dict[str, Any] = {
        "time": round(time.time(), 3),
        "request_id": request_id,
        "method": scope["method"],
        "route": route,
        "status": status,
        "seconds": round(seconds, 4),
    }
    if key is not None:
        values |= {"tenant": key.tenant, "key": key.id}
    access_log.info("%s", json.dumps(values))
