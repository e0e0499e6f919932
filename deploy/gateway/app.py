"""The gateway as an ASGI application: OpenAI's routes over the models of one Triton."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from openai.types import Model
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trtstream.deploy.gateway.chat_completions import ChatRequest, complete
from trtstream.deploy.gateway.errors import AWAY, ApiError, model_error
from trtstream.deploy.gateway.parameters import Body, read_object, unknown_model
from trtstream.deploy.gateway.responses import ResponseRequest, respond, turn_inputs
from trtstream.deploy.gateway.sessions import Sessions
from trtstream.deploy.gateway.turns import run_turn
from trtstream.deploy.http_front.answers import RefusedResponse
from trtstream.deploy.http_front.body import Refusal, read_body
from trtstream.deploy.http_front.connected import while_connected
from trtstream.deploy.http_front.readiness import Readiness
from trtstream.errors import TrtstreamError

if TYPE_CHECKING:
    from tritonclient.grpc.aio import InferenceServerClient

MAX_MEMBERS = 1 << 16  # of all objects in a request's JSON: a conversation's messages have some each
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Upstream:
    """How to reach Triton (arguments of tritonclient's client), the names of its models, and whether it is ready."""

    client_options: dict[str, Any]
    models: list[str]
    readiness: Readiness


@dataclass(frozen=True)
class Gateway:
    upstream: Upstream
    triton: InferenceServerClient
    sessions: Sessions = field(default_factory=Sessions)
    started: int = field(default_factory=lambda: int(time.time()))

    def model(self, name: str) -> Model:
        return Model(id=name, created=self.started, object="model", owned_by="trtstream")


def create_app(upstream: Upstream) -> Starlette:
    """The application over ``upstream``."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        from tritonclient.grpc.aio import InferenceServerClient

        async with InferenceServerClient(**upstream.client_options) as triton:
            app.state.gateway = Gateway(upstream, triton)
            yield

    return Starlette(
        routes=[
            Route("/health", _health, methods=["GET"]),
            Route("/v1/models", _models, methods=["GET"]),
            Route("/v1/models/{name:path}", _answer(_model), methods=["GET"]),
            Route("/v1/responses", _answer(_responses), methods=["POST"]),
            Route("/v1/chat/completions", _answer(_chat_completions), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _no_route},
        lifespan=lifespan,
    )


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
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}").response()


async def _health(request: Request) -> Response:
    """Whether turns are taken."""
    readiness = request.app.state.gateway.upstream.readiness
    status = HTTPStatus.OK if readiness.is_ready else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse({"ready": readiness.is_ready, "state": readiness.state.value}, status)


async def _models(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    models = [gateway.model(name).model_dump(exclude_unset=True) for name in gateway.upstream.models]
    return JSONResponse({"object": "list", "data": models})


async def _model(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    name = request.path_params["name"]
    if name not in gateway.upstream.models:
        raise unknown_model(name, gateway.upstream.models)
    return JSONResponse(gateway.model(name).model_dump(exclude_unset=True))


async def _responses(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    asked = ResponseRequest.read(await _body(request), gateway.upstream.models)
    session = gateway.sessions.take(asked.previous if asked.store else None)
    outputs = run_turn(gateway.triton, asked.model, turn_inputs(asked, session))
    return await while_connected(request, lambda: respond(asked, outputs, session, gateway.sessions))


async def _chat_completions(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    asked = ChatRequest.read(await _body(request), gateway.upstream.models)
    outputs = run_turn(gateway.triton, asked.model, asked.inputs)
    return await while_connected(request, lambda: complete(asked, outputs))


async def _body(request: Request) -> Body:
    """What a request asks for, if there is anybody to answer it."""
    if not request.app.state.gateway.upstream.readiness.is_ready:
        raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, AWAY, code="unavailable")
    return read_object(await read_body(request, MAX_MEMBERS))
