"""POST /v1/chat/completions: a whole conversation, of which the model feeds what no turn has seen."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk
from starlette.responses import JSONResponse

from trtstream.deploy.gateway.completion_stream import STREAM_OPTIONS, CompletionRequest, chunks, usage_of
from trtstream.deploy.gateway.errors import bad_request
from trtstream.deploy.gateway.event_stream import EventStream, event
from trtstream.deploy.gateway.logprobs import INPUT, Token, TokenReader
from trtstream.deploy.gateway.parameters import (
    MAX_MESSAGES,
    ROLES,
    SAMPLING,
    Body,
    Schema,
    message_text,
    model_inputs,
    refuse_others,
    take,
    take_model,
)
from trtstream.deploy.gateway.schemas import FLAG, MODEL, STOP, body_schema, text_parts
from trtstream.deploy.gateway.turns import Outputs, read_again
from trtstream.runtime.requests import TurnOutput

PARAMETERS = {**SAMPLING, "max_tokens": "max_tokens", "max_completion_tokens": "max_tokens", "recall": "recall"}
OTHERS: dict[str, Schema] = {
    "model": MODEL,
    "messages": {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_MESSAGES,
        "items": {
            "type": "object",
            "properties": {"role": {"enum": [*ROLES]}, "content": text_parts("text")},
            "required": ["role", "content"],
            "additionalProperties": {"enum": [None, []]},
        },
    },
    "logprobs": FLAG,
    "stop": STOP,
    "store": FLAG,
    "stream": FLAG,
    "stream_options": STREAM_OPTIONS,
}
KNOWN = {*PARAMETERS, *OTHERS}
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "top_logprobs": (0,),
}
BODY = body_schema(PARAMETERS, OTHERS, WITHOUT_EFFECT, required=("model", "messages"))


def read(body: Body, models: list[str]) -> CompletionRequest:
    """Raises ApiError for what is wrong, or not supported."""
    model = take_model(body, models)
    refuse_others(body, KNOWN, WITHOUT_EFFECT)
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise bad_request("max_tokens is the old name of max_completion_tokens; send one of them", "max_tokens")
    stream = take(body, "stream", bool, False)
    inputs = {
        "messages": json.dumps(_messages(body), ensure_ascii=False),
        "stream": stream,
        "session_end": not take(body, "store", bool, True),
        INPUT: take(body, "logprobs", bool, False),
        **model_inputs(body, PARAMETERS),
    }
    return CompletionRequest.new(model, inputs, body, "chatcmpl-")


async def complete(request: CompletionRequest, outputs: Outputs) -> JSONResponse | EventStream:
    """The response to send. Raises TrtstreamError for a turn that failed before its first token."""
    first = await anext(outputs)
    if request.stream:
        usage = partial(_event, request, []) if request.include_usage else None
        return EventStream(chunks(first, outputs, partial(_chunk, request), usage))
    async with contextlib.aclosing(outputs):
        message: dict[str, Any] = {"role": "assistant", "content": first.text, "refusal": None, "annotations": []}
        logprobs = _logprobs(request, TokenReader().take(first))
        choice = {"index": 0, "message": message, "finish_reason": first.finish_reason, "logprobs": logprobs}
        values = {"object": "chat.completion", "choices": [choice], "usage": usage_of(first)}
        completion = ChatCompletion.model_validate({**_common(request), **values, **read_again(first.recalled)})
        return JSONResponse(completion.model_dump(exclude_unset=True))


def _chunk(request: CompletionRequest, output: TurnOutput, tokens: Sequence[Token], is_first: bool) -> bytes:
    delta = (
        {"role": "assistant", "content": output.text} if is_first else {"content": output.text} if output.text else {}
    )
    logprobs = _logprobs(request, tokens)
    choice = {"index": 0, "delta": delta, "finish_reason": output.finish_reason or None, "logprobs": logprobs}
    return _event(request, [choice], **(read_again(output.recalled) if output.finish_reason else {}))


def _logprobs(request: CompletionRequest, tokens: Sequence[Token]) -> dict[str, Any] | None:
    return {"content": [token.as_object() for token in tokens], "refusal": None} if request.has_logprobs else None


def _event(
    request: CompletionRequest, choices: list[dict[str, Any]], last: TurnOutput | None = None, **more: Any
) -> bytes:
    """A chunk; the one with the usage has the turn's last output."""
    values = {**_common(request), "object": "chat.completion.chunk", "choices": choices, **more}
    if request.include_usage:
        values["usage"] = None if last is None else usage_of(last)
    return event(ChatCompletionChunk.model_validate(values))


def _common(request: CompletionRequest) -> dict[str, Any]:
    return {"id": request.id, "created": request.created, "model": request.model}


def _messages(body: Body) -> list[dict[str, str]]:
    """The conversation as the model takes it: roles and texts."""
    if "messages" not in body:
        raise bad_request("messages is missing", "messages", "missing_required_parameter")
    messages = []
    given = take(body, "messages", list, [])
    if len(given) > MAX_MESSAGES:
        raise bad_request(f"messages has {len(given)} messages; at most {MAX_MESSAGES} are taken", "messages")
    for number, message in enumerate(given):
        param = f"messages[{number}]"
        if not isinstance(message, dict):
            raise bad_request(f"{param} must be an object", param, "invalid_type")
        role = ROLES.get(str(message.get("role")))
        if role is None:
            raise bad_request(f"{param} has another role than {', '.join(ROLES)}", param, "unsupported_content")
        known = {name: value for name, value in message.items() if value not in (None, [])}
        if others := known.keys() - {"role", "content"}:
            raise bad_request(f"{param} has {min(others)[:64]}, which is not supported", param, "unsupported_content")
        messages.append({"role": role, "content": message_text(message.get("content"), "text", param)})
    return messages
