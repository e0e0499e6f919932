"""What POST /v1/responses asks for. A response is a turn: ``previous_response_id`` names the turn that it continues."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from trtstream.deploy.gateway.errors import ApiError, bad_request, model_error
from trtstream.deploy.gateway.logprobs import INPUT
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
    take_metadata,
    take_model,
)
from trtstream.deploy.gateway.response_objects import PREFIX
from trtstream.deploy.gateway.schemas import FLAG, METADATA, MODEL, STOP, TEXT, body_schema, text_parts
from trtstream.errors import TrtstreamError
from trtstream.sessions.records import parse_turn_id

LOGPROBS = "message.output_text.logprobs"
"""What `include` may have."""
PARTS = {role: "output_text" if role == "assistant" else "input_text" for role in ROLES}
MESSAGE_KEYS = {"type", "role", "content", "id", "status", "phase"}
MESSAGE: Schema = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                **{key: {} for key in sorted(MESSAGE_KEYS)},
                "type": {"const": "message"},
                "role": {"const": role},
                "content": text_parts(part),
            },
            "required": ["role", "content"],
            "additionalProperties": False,
        }
        for role, part in PARTS.items()
    ]
}
PARAMETERS = {**SAMPLING, "max_output_tokens": "max_tokens", "recall": "recall"}
OTHERS: dict[str, Schema] = {
    "model": MODEL,
    "input": {"anyOf": [TEXT, {"type": "array", "minItems": 1, "maxItems": MAX_MESSAGES, "items": MESSAGE}]},
    "instructions": TEXT,
    "previous_response_id": TEXT,
    "conversation": {
        "anyOf": [
            TEXT,
            {"type": "object", "properties": {"id": TEXT}, "required": ["id"], "additionalProperties": False},
        ]
    },
    "stop": STOP,
    "store": FLAG,
    "stream": FLAG,
    "background": FLAG,
    "metadata": METADATA,
    "include": {"type": "array", "items": {"const": LOGPROBS}},
}
KNOWN = {*PARAMETERS, *OTHERS}
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "parallel_tool_calls": (True, False),
    "service_tier": ("auto", "default"),
    "stream_options": ({"include_obfuscation": False}, {"include_usage": True}),  # usage always comes
    "text": ({"format": {"type": "text"}}, {}),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncation": ("auto",),
}
BODY = body_schema(PARAMETERS, OTHERS, WITHOUT_EFFECT, required=("model", "input"))


@dataclass(frozen=True)
class ResponseRequest:
    """``inputs`` are the model's, ``previous`` is the id of a turn, ``conversation`` that of a conversation."""

    model: str
    inputs: dict[str, Any]
    previous: str | None
    conversation: str | None
    stream: bool
    store: bool
    background: bool
    instructions: str | None
    metadata: dict[str, str]
    created: float

    @classmethod
    def read(cls, body: Body, models: list[str]) -> ResponseRequest:
        """Raises ApiError for what is wrong, or not supported."""
        model = take_model(body, models)
        refuse_others(body, KNOWN, WITHOUT_EFFECT)
        instructions = take(body, "instructions", str, "") or None
        previous, conversation = _previous(body), _conversation(body)
        if previous is not None and conversation is not None:
            raise bad_request(
                "previous_response_id and conversation both say what to continue; send one", "conversation"
            )
        store, background = take(body, "store", bool, True), take(body, "background", bool, False)
        for name in ("background",) * background + ("conversation",) * (conversation is not None):
            if not store:
                raise bad_request(f"{name} needs a response that is kept; leave store out", "store")
        if instructions is not None and previous is not None:
            raise bad_request(
                "instructions are for a conversation's first response, and stay in effect in those that continue it; "
                "leave them out together with previous_response_id",
                "instructions",
                "unsupported_parameter",
            )
        messages = _messages(body)
        if len(messages) > 1 and (previous or conversation) is not None:
            raise bad_request("input behind earlier responses is one user message", "input", "unsupported_content")
        if len(messages) > 1:  # a whole conversation, which begins no session
            system = [] if instructions is None else [{"role": "system", "content": instructions}]
            inputs: dict[str, Any] = {"messages": json.dumps(system + messages, ensure_ascii=False)}
        elif messages[0]["role"] != "user":
            raise bad_request("input has no user message", "input", "unsupported_content")
        else:
            said = {"text_input": messages[0]["content"], "chat": True}
            inputs = {**said, "system": instructions, "parent_turn": previous}
        return cls(
            model,
            {**inputs, INPUT: _includes_logprobs(body), **model_inputs(body, PARAMETERS)},
            previous,
            conversation,
            take(body, "stream", bool, False),
            store,
            background,
            instructions,
            take_metadata(body),
            time.time(),
        )


def begin(request: ResponseRequest, response_id: str) -> dict[str, Any]:
    """The response's object while it is in progress, as JSON."""
    inputs = request.inputs
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(request.created),
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "background": request.background,
        "conversation": None if request.conversation is None else {"id": request.conversation},
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": inputs.get("max_tokens"),
        "metadata": request.metadata,
        "model": request.model,
        "output": [],
        "max_tool_calls": None,
        "parallel_tool_calls": False,
        "presence_penalty": inputs.get("presence_penalty", 0.0),
        "frequency_penalty": inputs.get("frequency_penalty", 0.0),
        "prompt_cache_key": None,
        "reasoning": None,
        "safety_identifier": None,
        "service_tier": "default",
        "top_logprobs": 0,
        "previous_response_id": None if request.previous is None else PREFIX + request.previous,
        "store": request.store,
        "temperature": inputs.get("temperature", 0.0),
        "text": {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [],
        "top_p": inputs.get("top_p", 1.0),
        "truncation": "auto",
        "usage": None,
    }


def _messages(body: Body) -> list[dict[str, str]]:
    """The input as messages, as the model takes them: roles and texts."""
    if "input" not in body:
        raise bad_request("input is missing", "input", "missing_required_parameter")
    items = body["input"]
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    if not isinstance(items, list) or not 0 < len(items) <= MAX_MESSAGES:
        raise bad_request(
            f"input must be a string, or a list of up to {MAX_MESSAGES} messages", "input", "invalid_type"
        )
    messages = []
    for item in items:
        role = str(item.get("role")) if isinstance(item, dict) else ""
        if role not in ROLES or item.get("type", "message") != "message" or not item.keys() <= MESSAGE_KEYS:
            raise bad_request("input has something else than messages", "input", "unsupported_content")
        messages.append({"role": ROLES[role], "content": message_text(item.get("content"), PARTS[role], "input")})
    return messages


def _includes_logprobs(body: Body) -> bool:
    names = take(body, "include", list, [])
    if others := [name for name in names if name != LOGPROBS]:
        message = f"include has {str(others[0])[:64]!r}; this server takes {LOGPROBS!r}"
        raise bad_request(message, "include", "unsupported_parameter")
    return LOGPROBS in names


def _conversation(body: Body) -> str | None:
    """The conversation that is continued: an id, or an object with one."""
    value = body.get("conversation")
    if isinstance(value, dict) and value.keys() == {"id"}:
        value = value["id"]
    if value is None or isinstance(value, str):
        return value
    raise bad_request("conversation must be an id, or an object with an id", "conversation", "invalid_type")


def _previous(body: Body) -> str | None:
    """The turn that ``previous_response_id`` names."""
    name = "previous_response_id"
    if name not in body:
        return None
    previous = take(body, name, str, "")
    turn_id = read_turn_id(previous)
    if turn_id is None:
        raise _unknown_previous(previous[:64])
    return turn_id.hex()


def read_turn_id(response_id: str) -> bytes | None:
    """The turn whose response this is; None for what cannot be a response's id."""
    try:
        turn_id = parse_turn_id("a response", response_id.removeprefix(PREFIX))
    except TrtstreamError:
        return None
    return turn_id if response_id.startswith(PREFIX) else None


def failure(request: ResponseRequest, error: TrtstreamError) -> ApiError:
    """The error of a turn that failed before its first token."""
    if error.code == "not_found" and request.previous is not None:
        return _unknown_previous(PREFIX + request.previous)
    return model_error(error)


def _unknown_previous(response_id: str) -> ApiError:
    message = (
        f"there is no response {response_id!r} to continue: it was made with store false, was deleted, or this server "
        "has no session store in which to find it"
    )
    return ApiError(HTTPStatus.NOT_FOUND, message, param="previous_response_id", code="previous_response_not_found")
