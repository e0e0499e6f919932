"""The session store from an event loop: each call on a thread, and its errors as clients get them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

import anyio.to_thread

from trtstream.deploy.gateway.errors import ApiError
from trtstream.errors import TrtstreamError

if TYPE_CHECKING:
    from trtstream.sessions.response_log import ResponseLog

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class Store:
    """``url`` is the session store's, None without one."""

    def __init__(self, url: str | None) -> None:
        self._log: ResponseLog | None = None
        if url is not None:
            from trtstream.sessions.response_log import ResponseLog  # here, as most gateways have none

            self._log = ResponseLog(url)

    @property
    def exists(self) -> bool:
        return self._log is not None

    async def call(self, work: Callable[[ResponseLog], Result]) -> Result:
        """``work(log)``. Raises ApiError where there is no store, or it does not answer."""
        if self._log is None:
            raise ApiError(
                HTTPStatus.NOT_FOUND, "this server keeps nothing; it needs serve --session-store", code="no_store"
            )
        log = self._log
        try:
            return await anyio.to_thread.run_sync(lambda: work(log))
        except TrtstreamError as error:
            logger.warning("%s", error)  # it names the store, which is not for clients
            message = "the session store does not answer; try again later"
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, code="unavailable") from error

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
