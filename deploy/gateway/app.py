"""The gateway as an ASGI application: OpenAI's routes over the models of one Triton."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

from openai.types import Model
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

from trtstream.deploy.gateway import chat_completions, completions, conversations, responses
from trtstream.deploy.gateway.access import Access
from trtstream.deploy.gateway.admission import Admission, Shares
from trtstream.deploy.gateway.completion_stream import CompletionRequest
from trtstream.deploy.gateway.errors import ApiError, model_error
from trtstream.deploy.gateway.event_stream import EventStream
from trtstream.deploy.gateway.keys import KeyFile
from trtstream.deploy.gateway.operations import description
from trtstream.deploy.gateway.page_files import page_routes
from trtstream.deploy.gateway.parameters import Body, unknown_model
from trtstream.deploy.gateway.request_counts import CONTENT_TYPE, RequestCounts
from trtstream.deploy.gateway.state import (
    Gateway,
    Upstream,
    gateway_of,
    read_parameters,
    require_ready,
    tenant_of,
)
from trtstream.deploy.gateway.store import Store
from trtstream.deploy.gateway.triton import TritonService
from trtstream.deploy.gateway.turns import Outputs
from trtstream.deploy.http_front.answers import RefusedResponse
from trtstream.deploy.http_front.body import Refusal
from trtstream.deploy.http_front.connected import while_connected
from trtstream.errors import TrtstreamError

Handler = Callable[[Request], Awaitable[Response]]
UNSUPPORTED = {
    "POST /v1/conversations/{id}/items": conversations.FIXED_ITEMS,
    "DELETE /v1/conversations/{id}/items/{item}": conversations.FIXED_ITEMS,
}
"""Why OpenAI's paths lack some of its methods here."""


def create_app(upstream: Upstream, access: Access, shares: Shares) -> Starlette:
    """The application over ``upstream``, for those whom ``access`` lets in. ``shares`` counts their turns.

    Raises TrtstreamError if the file of keys cannot be read.
    """
    keys = None if access.key_file is None else KeyFile(access.key_file)
    counts = RequestCounts()
    middleware = [Middleware(Admission, keys=keys, shares=shares, counts=counts)]
    if access.cors_origins:
        every, shown = ["*"], ["x-request-id"]
        cors = Middleware(
            CORSMiddleware,
            allow_origins=access.cors_origins,
            allow_methods=every,
            allow_headers=every,
            expose_headers=shown,
        )
        middleware.insert(0, cors)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with TritonService(upstream.triton) as triton:
            with contextlib.closing(Store(upstream.session_store)) as store:
                app.state.gateway = Gateway(upstream, triton, store, shares)
                yield

    async def metrics(request: Request) -> Response:
        return Response(counts.text(shares.running), headers={"content-type": CONTENT_TYPE})

    return Starlette(
        routes=[
            *page_routes(),
            Route("/health", _health, methods=["GET"]),
            Route("/ready", _health, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/openapi.json", _openapi, methods=["GET"]),
            _route("GET", "/v1/models", _models),
            _route("GET", "/v1/models/{name:path}", _model),
            _route("POST", "/v1/responses", responses.create),
            _route("POST", "/v1/responses/compact", responses.compact),
            _route("GET", "/v1/responses/{id}", responses.retrieve),
            _route("DELETE", "/v1/responses/{id}", responses.delete),
            _route("POST", "/v1/responses/{id}/cancel", responses.cancel),
            _route("GET", "/v1/responses/{id}/input_items", responses.input_items),
            _route("POST", "/v1/conversations", conversations.create),
            _route("GET", "/v1/conversations", conversations.every),
            _route("GET", "/v1/conversations/{id}", conversations.retrieve),
            _route("POST", "/v1/conversations/{id}", conversations.describe),
            _route("DELETE", "/v1/conversations/{id}", conversations.delete),
            _route("GET", "/v1/conversations/{id}/items", conversations.items),
            _route("GET", "/v1/conversations/{id}/items/{item}", conversations.item),
            _route("POST", "/v1/chat/completions", _completing(chat_completions.read, chat_completions.complete)),
            _route("POST", "/v1/completions", _completing(completions.read, completions.complete)),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _no_route},
        lifespan=lifespan,
    )


def _route(method: str, path: str, handle: Handler) -> Route:
    return Route(path, _answer(handle), methods=[method])


def _answer(handle: Handler) -> Handler:
    """``handle`` with every foreseen failure as a response."""

    async def answer(request: Request) -> Response:
        try:
            return await handle(request)
        except ApiError as error:
            return error.response()
        except TrtstreamError as error:
            return model_error(error).response()
        except Refusal as refusal:
            return RefusedResponse(refusal, ApiError(refusal.status, refusal.message).body["error"])
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody reads it

    return answer


async def _no_route(request: Request, error: Exception) -> Response:
    """No such path, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    others = [
        route
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is Match.PARTIAL
    ]
    reasons = [UNSUPPORTED.get(f"{request.method} {route.path}", error.detail) for route in others] or [error.detail]
    methods = sorted({method for route in others for method in route.methods or ()})
    return ApiError(
        error.status_code,
        f"{request.method} {request.url.path[:200]}: {reasons[0]}",
        headers={"allow": ", ".join(methods)} if others else None,
    ).response()


async def _health(request: Request) -> Response:
    """Whether turns are taken."""
    readiness = request.app.state.gateway.upstream.readiness
    status = HTTPStatus.OK if readiness.is_ready else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse({"ready": readiness.is_ready, "state": readiness.state.value}, status)


def _openapi(request: Request) -> Response:
    """In a thread, as the first takes half a second."""
    return JSONResponse(description(tuple(gateway_of(request).upstream.models)))


async def _models(request: Request) -> Response:
    models = [await _as_object(request, name) for name in gateway_of(request).upstream.models]
    return JSONResponse({"object": "list", "data": models})


async def _model(request: Request) -> Response:
    name, models = request.path_params["name"], gateway_of(request).upstream.models
    if name not in models:
        raise unknown_model(name, models)
    return JSONResponse(await _as_object(request, name))


async def _as_object(request: Request, name: str) -> dict[str, Any]:
    """A model as OpenAI has it, with the sizes of its window where Triton tells them."""
    gateway = gateway_of(request)
    model = Model(id=name, created=gateway.started, object="model", owned_by="trtstream")
    return model.model_dump(exclude_unset=True) | await gateway.triton.window_sizes(name)


def _completing(
    read: Callable[[Body, list[str]], CompletionRequest],
    complete: Callable[[CompletionRequest, Outputs], Awaitable[JSONResponse | EventStream]],
) -> Handler:
    """A route that completes a chat or a text."""

    async def handle(request: Request) -> Response:
        gateway = gateway_of(request)
        require_ready(gateway)
        asked = read(await read_parameters(request), gateway.upstream.models)
        outputs = gateway.run(tenant_of(request), asked.model, asked.inputs)
        return await while_connected(request.receive, lambda: complete(asked, outputs))

    return handle
