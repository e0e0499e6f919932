"""POST /v1/chat/completions: a whole conversation, of which the model feeds what no turn has seen."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion_usage import PromptTokensDetails
from starlette.responses import JSONResponse

from trtstream.deploy.gateway.errors import bad_request, model_error
from trtstream.deploy.gateway.event_stream import DONE, EventStream, event
from trtstream.deploy.gateway.parameters import (
    SAMPLING,
    Body,
    message_text,
    model_inputs,
    refuse_others,
    take,
    take_model,
)
from trtstream.deploy.gateway.turns import Outputs, fed_before
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnOutput

PARAMETERS = {**SAMPLING, "max_tokens": "max_tokens", "max_completion_tokens": "max_tokens"}
KNOWN = {*PARAMETERS, "stop", "model", "messages", "store", "stream", "stream_options"}
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class ChatRequest:
    """``inputs`` are the model's. ``id`` and ``created`` are in the answer and in each of its chunks."""

    model: str
    inputs: dict[str, Any]
    stream: bool
    include_usage: bool
    id: str
    created: int

    @classmethod
    def read(cls, body: Body, models: list[str]) -> ChatRequest:
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
            **model_inputs(body, PARAMETERS),
        }
        created = int(time.time())
        return cls(model, inputs, stream, _include_usage(body), "chatcmpl-" + secrets.token_hex(16), created)


async def complete(request: ChatRequest, outputs: Outputs) -> JSONResponse | EventStream:
    """The response to send. Raises TrtstreamError for a turn that failed before its first token."""
    first = await anext(outputs)
    if request.stream:
        return EventStream(_chunks(request, first, outputs))
    async with contextlib.aclosing(outputs):
        message = {"role": "assistant", "content": first.text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": first.finish_reason, "logprobs": None}
        values = {"object": "chat.completion", "choices": [choice], "usage": _usage(first)}
        completion = ChatCompletion.model_validate({**_common(request), **values})
        return JSONResponse(completion.model_dump(exclude_unset=True))


async def _chunks(request: ChatRequest, first: TurnOutput, outputs: Outputs) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(outputs):
        yield _chunk(request, {"role": "assistant", "content": first.text}, first)
        last = first
        try:
            async for last in outputs:
                if last.text or last.finish_reason:
                    yield _chunk(request, {"content": last.text} if last.text else {}, last)
        except TrtstreamError as error:
            yield f"data: {json.dumps(model_error(error).body)}\n\n".encode()
            return
        if request.include_usage:
            yield _event(request, [], _usage(last))
        yield DONE


def _chunk(request: ChatRequest, delta: dict[str, str], output: TurnOutput) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": output.finish_reason or None, "logprobs": None}
    return _event(request, [choice], None)


def _event(request: ChatRequest, choices: list[dict[str, Any]], usage: CompletionUsage | None) -> bytes:
    values = {**_common(request), "object": "chat.completion.chunk", "choices": choices}
    if request.include_usage:
        values["usage"] = usage
    return event(ChatCompletionChunk.model_validate(values))


def _common(request: ChatRequest) -> dict[str, Any]:
    return {"id": request.id, "created": request.created, "model": request.model}


def _usage(last: TurnOutput) -> CompletionUsage:
    """Tokens of the whole conversation, which has one more than it was fed: the last sampled one."""
    total = last.session_tokens + 1
    return CompletionUsage(
        prompt_tokens=total - last.num_output_tokens,
        completion_tokens=last.num_output_tokens,
        total_tokens=total,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=fed_before(last)),
    )


def _include_usage(body: Body) -> bool:
    options = take(body, "stream_options", dict, {})
    refuse_others(options, {"include_usage"}, {"include_obfuscation": (False,)})
    return take(options, "include_usage", bool, False)


def _messages(body: Body) -> list[dict[str, str]]:
    """The conversation as the model takes it: roles and texts."""
    if "messages" not in body:
        raise bad_request("messages is missing", "messages", "missing_required_parameter")
    messages = []
    for number, message in enumerate(take(body, "messages", list, [])):
        param = f"messages[{number}]"
        if not isinstance(message, dict):
            raise bad_request(f"{param} must be an object", param, "invalid_type")
        role = ROLES.get(str(message.get("role")))
        if role is None:
            raise bad_request(f"{param} has another role than {', '.join(ROLES)}", param, "unsupported_content")
        known = {name: value for name, value in message.items() if value not in (None, [])}
        if others := known.keys() - {"role", "content"}:
            raise bad_request(f"{param} has {min(others)[:64]}, which is not supported", param, "unsupported_content")
        messages.append({"role": role, "content": message_text(message.get("content"), {"text"}, param)})
    return messages
