"""Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code"}}`` and a status."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from openai.types.shared import ErrorObject
from starlette.responses import JSONResponse

from trtstream.errors import TrtstreamError
from trtstream.runtime.request_fields import ERROR_CODES

AWAY = "the server is starting, restarting or shutting down; try again"


class ApiError(Exception):
    """A request that has no answer. ``param`` names the parameter that is wrong, ``code`` is for programs.

    ``retry_after`` is in seconds, ``headers`` are the response's.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self._headers = dict(headers or {})
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            retry_after = 1
        if retry_after is not None:
            self._headers["retry-after"] = str(retry_after)
        self.error = ErrorObject(code=code, message=message, param=param, type=_type(status))

    @property
    def body(self) -> dict[str, Any]:
        return {"error": self.error.model_dump(exclude_unset=True)}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, headers=self._headers)


def bad_request(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """A request that is wrong in itself."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def model_error(error: TrtstreamError) -> ApiError:
    """The error of a turn, by the code that the model gave it. What Triton itself says has none."""
    if error.code is None:
        return ApiError(HTTPStatus.BAD_GATEWAY, str(error))
    return ApiError(ERROR_CODES[error.code].status, str(error), code=error.code)


def _type(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    if status == HTTPStatus.UNAUTHORIZED:
        return "authentication_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
