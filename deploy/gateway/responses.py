"""/v1/responses: make a response, look at it, follow it, cancel it, delete it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from trtstream.deploy.gateway.conversations import find_conversation
from trtstream.deploy.gateway.errors import ApiError, bad_request
from trtstream.deploy.gateway.event_stream import EventStream
from trtstream.deploy.gateway.items import listed
from trtstream.deploy.gateway.parameters import Schema, read_query
from trtstream.deploy.gateway.pieces import cut, to_keep
from trtstream.deploy.gateway.progress import Progress
from trtstream.deploy.gateway.response_objects import PREFIX, answer, question
from trtstream.deploy.gateway.response_requests import LOGPROBS, ResponseRequest, begin, failure, read_turn_id
from trtstream.deploy.gateway.schemas import FLAG
from trtstream.deploy.gateway.state import Gateway, gateway_of, read_parameters, require_ready, tenant_of
from trtstream.deploy.gateway.turns import Outputs
from trtstream.deploy.http_front.connected import while_connected
from trtstream.errors import TrtstreamError
from trtstream.runtime.continuation import same_answer
from trtstream.runtime.requests import TurnOutput
from trtstream.sessions.records import TurnRecord

INCLUDE = ("include", "include[]")  # openai-python's is the second
QUERY: dict[str, Schema] = {
    "stream": FLAG,
    "starting_after": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
    "include_obfuscation": FLAG,
    **{name: {"type": "string", "enum": [LOGPROBS]} for name in INCLUDE},
}


async def create(request: Request) -> Response:
    """POST /v1/responses."""
    gateway, tenant = gateway_of(request), tenant_of(request)
    require_ready(gateway)
    asked = ResponseRequest.read(await read_parameters(request), gateway.upstream.models)
    session = None
    if asked.conversation is not None:
        await find_conversation(gateway, tenant, asked.conversation)
        session = asked.conversation
    elif "messages" not in asked.inputs:
        session = gateway.sessions.take(tenant, asked.previous if asked.store else None)
    inputs = {
        **asked.inputs,
        "session_id": session,
        "session_end": not asked.store,
        "stream": asked.stream or asked.background,
    }
    outputs = gateway.run(tenant, asked.model, inputs)

    async def respond() -> Response:
        try:
            first = await anext(outputs)
        except TrtstreamError as error:
            raise failure(asked, error) from None
        kept = asked.store and first.turn_id != ""  # messages are kept in a session store alone
        turn_id = first.turn_id if kept else secrets.token_hex(16)
        before = first.session_tokens + 1 - first.num_output_tokens
        progress = Progress({**begin(asked, PREFIX + turn_id), "store": kept, "input_tokens": before})
        if kept and session is not None and asked.conversation is None:
            gateway.sessions.put(tenant, turn_id, session)
        if asked.stream and not asked.background:
            return EventStream(_followed(gateway, tenant, progress, first, outputs))
        await _start(gateway, tenant, progress, first, outputs)
        if asked.background and asked.stream:
            return EventStream(progress.events())
        if not asked.background:
            await progress.over()
        return _json(progress)

    return await while_connected(request.receive, respond)


async def _start(
    gateway: Gateway, tenant: str, progress: Progress, first: TurnOutput, outputs: Outputs
) -> asyncio.Task[None]:
    """Make the response in a task of its own."""
    task = asyncio.create_task(_make(gateway, tenant, progress, first, outputs))
    if progress.begun["store"]:
        gateway.responses.add(tenant, progress, task)
    await asyncio.sleep(0)  # it has the outputs now, and closes them when it is cancelled
    return task


async def _make(gateway: Gateway, tenant: str, progress: Progress, first: TurnOutput, outputs: Outputs) -> None:
    """Let the response run to its end, and keep what its turn does not say of it."""
    with contextlib.suppress(asyncio.CancelledError):  # the response says so
        await progress.run(first, outputs)
    if not progress.begun["store"]:
        return
    if gateway.store.exists and progress.response.status != "failed":
        turn_id = bytes.fromhex(progress.id.removeprefix(PREFIX))
        body = {"begun": progress.begun, **to_keep(progress.pieces)}
        with contextlib.suppress(ApiError):  # a failure is in the log
            await gateway.store.call(lambda log: log.add_response(turn_id, body))
            if progress.response.status != "cancelled":  # else its turn will be in the store soon
                gateway.responses.remove(tenant, progress.id)
    gateway.responses.trim()


async def _followed(
    gateway: Gateway, tenant: str, progress: Progress, first: TurnOutput, outputs: Outputs
) -> AsyncGenerator[bytes, None]:
    """The events of a response that ends when its client leaves."""
    task = await _start(gateway, tenant, progress, first, outputs)
    try:
        async for events in progress.events():
            yield events
    finally:
        if not progress.is_over:
            task.cancel()


async def retrieve(request: Request) -> Response:
    """GET /v1/responses/ID, with ``stream`` its events, with ``starting_after`` those with greater numbers."""
    query = read_query(request, QUERY)
    progress = await _find(request)
    for name in query.keys() & INCLUDE:
        _check_included(name, progress)
    if not query.get("stream"):
        if "starting_after" in query:
            raise bad_request("starting_after is for stream=true", "starting_after")
        return _json(progress)
    return EventStream(progress.events(query.get("starting_after", -1)))


def _check_included(name: str, progress: Progress) -> None:
    """Refuse ``include`` for a response that was created without log-probabilities, as they cannot be added later."""
    if progress.is_over and progress.pieces and not any(piece.tokens for piece in progress.pieces):
        message = f"this response has no log-probabilities; include {LOGPROBS!r} when it is made"
        raise bad_request(message, name, "unsupported_parameter")


async def cancel(request: Request) -> Response:
    """POST /v1/responses/ID/cancel: end a background response; what it has said by then stays."""
    progress = await _find(request)
    if not progress.begun["background"]:
        raise bad_request("only a response with background true can be cancelled; leave another's stream", None)
    await gateway_of(request).responses.cancel(progress)
    return _json(progress)


async def delete(request: Request) -> Response:
    """DELETE /v1/responses/ID: it cannot be found or continued any more; those that continue it stay."""
    gateway, tenant, turn_id = gateway_of(request), tenant_of(request), _turn_id(request)
    progress = gateway.responses.get(tenant, request.path_params["id"])
    if progress is not None and not progress.is_over:
        raise ApiError(
            HTTPStatus.CONFLICT, "the response is in progress; cancel it, or wait for its end", code="conflict"
        )
    gateway.sessions.take(tenant, turn_id.hex())
    gateway.responses.remove(tenant, request.path_params["id"])
    if not await gateway.store.call(lambda log: log.forget(tenant, turn_id)):
        raise _unknown(request)
    return JSONResponse({"id": request.path_params["id"], "object": "response", "deleted": True})


async def input_items(request: Request) -> Response:
    """GET /v1/responses/ID/input_items: the conversation up to the response's answer."""
    gateway, tenant, turn_id = gateway_of(request), tenant_of(request), _turn_id(request)
    if await gateway.store.call(lambda log: log.response(tenant, turn_id)) is None:
        raise _unknown(request)
    turns = await gateway.store.call(lambda log: log.branch(turn_id))
    items = [item for turn in turns for item in (question(turn), answer(turn))][:-1]
    return listed(request, items, sink_tokens=turns[0].sink_token_length)


async def compact(request: Request) -> Response:
    """POST /v1/responses/compact: a session needs none."""
    message = "a conversation is not compacted here, as its cache does not grow; go on with previous_response_id"
    raise ApiError(HTTPStatus.NOT_FOUND, message, code="unsupported")


async def _find(request: Request) -> Progress:
    """The response of this id, whether it is made here or in the store."""
    gateway, tenant, response_id = gateway_of(request), tenant_of(request), request.path_params["id"]
    turn_id = _turn_id(request)
    if progress := gateway.responses.get(tenant, response_id):
        return progress
    found = await gateway.store.call(lambda log: log.response(tenant, turn_id)) if gateway.store.exists else None
    if found is None:
        raise _unknown(request)
    turn, body = found
    progress = Progress(body.get("begun") or _begun(turn, response_id, gateway.upstream.models[0]))
    progress.end(cut(turn.text, body), same_answer(turn), turn.created)
    return progress


def _begun(turn: TurnRecord, response_id: str, model: str) -> dict[str, Any]:
    """The object of a response of which the turn alone is known: whoever asked for it did not see its end."""
    previous = None if turn.parent is None else turn.parent.hex()
    inputs: dict[str, Any] = {}
    asked = ResponseRequest(model, inputs, previous, None, False, True, False, turn.system, {}, turn.created)
    return begin(asked, response_id)


def _turn_id(request: Request) -> bytes:
    turn_id = read_turn_id(request.path_params["id"])
    if turn_id is None:
        raise _unknown(request)
    return turn_id


def _unknown(request: Request) -> ApiError:
    message = f"there is no response {request.path_params['id'][:64]!r}; it was made with store false, or was deleted"
    return ApiError(HTTPStatus.NOT_FOUND, message, param="response_id", code="response_not_found")


def _json(progress: Progress) -> JSONResponse:
    return JSONResponse(progress.response.model_dump(exclude_unset=True))
