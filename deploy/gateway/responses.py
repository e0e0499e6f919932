"""POST /v1/responses: a response is a turn, and ``previous_response_id`` names the turn that it continues."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from openai.types.responses import Response, ResponseOutputMessage, ResponseUsage
from starlette.responses import JSONResponse

from trtstream.deploy.gateway.errors import ApiError, bad_request, model_error
from trtstream.deploy.gateway.event_stream import EventStream
from trtstream.deploy.gateway.parameters import (
    SAMPLING,
    Body,
    message_text,
    model_inputs,
    refuse_others,
    take,
    take_metadata,
    take_model,
    text,
)
from trtstream.deploy.gateway.response_events import ResponseEvents
from trtstream.deploy.gateway.sessions import Sessions
from trtstream.deploy.gateway.turns import Outputs, fed_before
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnOutput
from trtstream.sessions.records import parse_turn_id

PREFIX = "resp_"
PARAMETERS = {**SAMPLING, "max_output_tokens": "max_tokens"}
KNOWN = {*PARAMETERS, "stop", "model", "input", "instructions", "previous_response_id", "store", "stream", "metadata"}
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "include": ([],),
    "parallel_tool_calls": (True, False),
    "service_tier": ("auto", "default"),
    "stream_options": ({"include_obfuscation": False},),
    "text": ({"format": {"type": "text"}}, {}),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncation": ("auto",),
}
MESSAGE_KEYS = {"type", "role", "content", "id", "status"}


@dataclass(frozen=True)
class ResponseRequest:
    """``inputs`` are the model's, ``previous`` is the id of a turn."""

    model: str
    inputs: dict[str, Any]
    previous: str | None
    stream: bool
    store: bool
    instructions: str | None
    metadata: dict[str, str]
    created: float

    @classmethod
    def read(cls, body: Body, models: list[str]) -> ResponseRequest:
        """Raises ApiError for what is wrong, or not supported."""
        model = take_model(body, models)
        refuse_others(body, KNOWN, WITHOUT_EFFECT)
        instructions = text(take(body, "instructions", str, ""), "instructions") or None
        previous = _previous(body)
        if instructions is not None and previous is not None:
            raise bad_request(
                "instructions are for a conversation's first response, and stay in effect in those that continue it; "
                "leave them out together with previous_response_id",
                "instructions",
                "unsupported_parameter",
            )
        inputs = {"text_input": _input(body), "chat": True, "system": instructions, "parent_turn": previous}
        return cls(
            model,
            {**inputs, **model_inputs(body, PARAMETERS)},
            previous,
            take(body, "stream", bool, False),
            take(body, "store", bool, True),
            instructions,
            take_metadata(body),
            time.time(),
        )


@dataclass(frozen=True)
class Answer:
    """A response's id, and what it has when it ends; or why it failed."""

    id: str
    text: str = ""
    last: TurnOutput | None = None
    error: ApiError | None = None


async def respond(
    request: ResponseRequest, outputs: Outputs, session: str, sessions: Sessions
) -> JSONResponse | EventStream:
    """The response to send. Raises ApiError for a turn that failed before its first token.

    ``outputs`` are those of a turn with the inputs that `turn_inputs` made, for the same ``session``.
    """
    try:
        first = await anext(outputs)
    except TrtstreamError as error:
        raise _failure(request, error) from None
    turn_id = first.turn_id if request.store else secrets.token_hex(16)
    if request.store:
        sessions.put(turn_id, session)
    if request.stream:
        return EventStream(_events(request, PREFIX + turn_id, first, outputs))
    async with contextlib.aclosing(outputs):
        response = make_response(request, Answer(PREFIX + turn_id, first.text, first))
        return JSONResponse(response.model_dump(exclude_unset=True))


def turn_inputs(request: ResponseRequest, session: str) -> dict[str, Any]:
    """The inputs of the request's turn in this session. Without ``store`` the session ends with it."""
    return {**request.inputs, "stream": request.stream, "session_id": session, "session_end": not request.store}


async def _events(
    request: ResponseRequest, response_id: str, first: TurnOutput, outputs: Outputs
) -> AsyncGenerator[bytes, None]:
    events = ResponseEvents(_message(response_id))
    async with contextlib.aclosing(outputs):
        yield events.begin(make_response(request, Answer(response_id)))
        pieces, last = [first.text], first
        if first.text:
            yield events.delta(first.text)
        try:
            async for last in outputs:
                pieces.append(last.text)
                if last.text:
                    yield events.delta(last.text)
        except TrtstreamError as error:
            failed = Answer(response_id, "".join(pieces), error=model_error(error))
            yield events.fail(make_response(request, failed))
            return
        answer = Answer(response_id, "".join(pieces), last)
        yield events.end(make_response(request, answer), answer.text)


def make_response(request: ResponseRequest, answer: Answer) -> Response:
    """The response as it is now: in progress, complete or failed."""
    inputs, last, error = request.inputs, answer.last, answer.error
    status = "in_progress" if last is None else "incomplete" if last.finish_reason == "length" else "completed"
    return Response.model_validate(
        {
            "id": answer.id,
            "object": "response",
            "created_at": request.created,
            "completed_at": None if last is None else time.time(),
            "status": status if error is None else "failed",
            "error": None if error is None else {"code": "server_error", "message": str(error)},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": inputs.get("max_tokens"),
            "metadata": request.metadata,
            "model": request.model,
            "output": [] if last is None else [_message(answer.id, answer.text, status)],
            "parallel_tool_calls": False,
            "previous_response_id": None if request.previous is None else PREFIX + request.previous,
            "store": request.store,
            "temperature": inputs.get("temperature", 0.0),
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": inputs.get("top_p", 1.0),
            "truncation": "auto",
            "usage": None if last is None else _usage(last),
        }
    )


def _message(response_id: str, text: str | None = None, status: str = "in_progress") -> ResponseOutputMessage:
    content = [] if text is None else [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return ResponseOutputMessage.model_validate(
        {
            "id": "msg_" + response_id.removeprefix(PREFIX),
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }
    )


def _usage(last: TurnOutput) -> ResponseUsage:
    """Tokens of the whole conversation; cached are those that it had been fed before this turn.

    The conversation has one token more than it was fed: the last sampled one, which the next turn feeds first.
    """
    total = last.session_tokens + 1
    return ResponseUsage.model_validate(
        {
            "input_tokens": total - last.num_output_tokens,
            "input_tokens_details": {"cached_tokens": fed_before(last), "cache_write_tokens": 0},
            "output_tokens": last.num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": total,
        }
    )


def _input(body: Body) -> str:
    """The text of the one message that a turn has."""
    if "input" not in body:
        raise bad_request("input is missing", "input", "missing_required_parameter")
    items = body["input"]
    if isinstance(items, str):
        return text(items, "input")
    if not isinstance(items, list) or len(items) != 1 or not isinstance(items[0], dict):
        raise bad_request(
            "input must be a string, or a list of one user message; earlier messages are named by previous_response_id",
            "input",
            "unsupported_content",
        )
    (item,) = items
    if item.get("type", "message") != "message" or item.get("role") != "user" or not item.keys() <= MESSAGE_KEYS:
        raise bad_request("input has something else than a user's message", "input", "unsupported_content")
    return message_text(item.get("content"), {"input_text"}, "input")


def _previous(body: Body) -> str | None:
    """The turn that ``previous_response_id`` names."""
    name = "previous_response_id"
    if name not in body:
        return None
    previous = take(body, name, str, "")
    turn_id = previous.removeprefix(PREFIX)
    try:
        parse_turn_id(name, turn_id)
    except TrtstreamError:
        turn_id = ""
    if PREFIX + turn_id != previous:
        raise _unknown_response(previous[:64])
    return turn_id


def _failure(request: ResponseRequest, error: TrtstreamError) -> ApiError:
    if error.code == "not_found" and request.previous is not None:
        return _unknown_response(PREFIX + request.previous)
    return model_error(error)


def _unknown_response(response_id: str) -> ApiError:
    message = (
        f"there is no response {response_id!r} to continue: it was made with store false, was deleted, or this server "
        "has no session store in which to find it"
    )
    return ApiError(HTTPStatus.NOT_FOUND, message, param="previous_response_id", code="previous_response_not_found")
