"""Reads a request's JSON: what the model takes becomes its inputs, and everything else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.requests import Request

from trtstream.deploy.gateway.errors import ApiError, bad_request
from trtstream.runtime.request_fields import GREATEST, INPUTS, Field

Body = dict[str, Any]
Schema = dict[str, Any]
Kind = TypeVar("Kind")

SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "random_seed",
}
"""The model's inputs by the names of parameters. OpenAI's protocols have no top_k and no repetition_penalty."""

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""The model's roles by OpenAI's."""

MAX_MESSAGES = 4096
MAX_METADATA = 16


def read_object(text: bytes) -> Body:
    """The parameters that a request's body has."""
    try:
        body = json.loads(text.decode())
        if b"\\u" in text:
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        fix = f"remove the lone surrogate {error.object[error.start]!a}"
        raise bad_request(f"the request's body is not text; {fix}", None, "invalid_json") from None
    except ValueError as error:
        raise bad_request(f"the request's body is not JSON ({error})", None, "invalid_json") from None
    if not isinstance(body, dict):
        raise bad_request("the request's body is not a JSON object", None, "invalid_json")
    return without_nulls(body)


def without_nulls(body: Body) -> Body:
    """null is the same as nothing."""
    return {name: value for name, value in body.items() if value is not None}


def read_query(request: Request, schemas: Mapping[str, Schema]) -> dict[str, Any]:
    """The parameters in a request's URL, which are as ``schemas`` has them: flags, integers with limits, or texts."""
    values: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        schema = schemas.get(name)
        if schema is None:
            raise bad_request(f"{name[:64]} is not supported here; leave it out", name[:64], "unsupported_parameter")
        values[name] = _query_value(name, value, schema)
    return values


def _query_value(name: str, value: str, schema: Schema) -> Any:
    if schema["type"] == "integer":
        least, most = schema["minimum"], schema["maximum"]
        if value.isascii() and value.isdecimal() and len(value) <= len(str(most)) and least <= int(value) <= most:
            return int(value)
        raise bad_request(f"{name} must be a whole number from {least} to {most}", name)
    allowed = ["true", "false"] if schema["type"] == "boolean" else schema.get("enum", [value])
    if value not in allowed:
        raise bad_request(f"{name} must be {' or '.join(allowed)}", name)
    return value == "true" if schema["type"] == "boolean" else value


def refuse_others(body: Body, known: Collection[str], without_effect: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ApiError for the first parameter that is not ``known``, nor has a value that is ``without_effect``."""
    for name, value in body.items():
        allowed = without_effect.get(name)
        if name in known or (allowed is not None and _as_json(value) in map(_as_json, allowed)):
            continue
        fix = "leave it out" if not allowed else f"leave it out, or send {json.dumps(allowed[0])}"
        raise bad_request(
            f"{name[:64]} is not supported with this value here; {fix}", name[:64], "unsupported_parameter"
        )


def _as_json(value: Any) -> str:
    """For comparisons in which true is not 1, as it is to Python."""
    return json.dumps(value, sort_keys=True)


def model_inputs(body: Body, names: Mapping[str, str]) -> dict[str, Any]:
    """The model's inputs that the parameters ``names`` ask for, and ``stop``."""
    inputs: dict[str, Any] = {}
    for name, tensor in names.items():
        if name in body:
            inputs[tensor] = _number(name, body[name], INPUTS[tensor])
    if "stop" in body:
        words = [body["stop"]] if isinstance(body["stop"], str) else body["stop"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise bad_request("stop is neither a string nor a list of strings", "stop", "invalid_type")
        inputs["stop_words"] = words
    return inputs


def take(body: Body, name: str, kind: type[Kind], default: Kind) -> Kind:
    """A parameter that must be of this kind."""
    value = body.get(name, default)
    if not isinstance(value, kind):
        expected = {bool: "true or false", str: "a string", dict: "an object", list: "a list"}[kind]
        raise bad_request(f"{name} must be {expected}", name, "invalid_type")
    return value


def take_model(body: Body, models: Collection[str]) -> str:
    """The model that a request is for."""
    if "model" not in body:
        raise bad_request("model is missing; GET /v1/models has its name", "model", "missing_required_parameter")
    model = take(body, "model", str, "")
    if model not in models:
        raise unknown_model(model, models)
    return model


def unknown_model(model: str, models: Collection[str]) -> ApiError:
    message = f"there is no model {model[:64]!r} here; it has {', '.join(map(repr, models))}"
    return ApiError(HTTPStatus.NOT_FOUND, message, param="model", code="model_not_found")


def take_metadata(body: Body) -> dict[str, str]:
    metadata = take(body, "metadata", dict, {})
    if len(metadata) > MAX_METADATA or not all(isinstance(value, str) for value in metadata.values()):
        raise bad_request(f"metadata must be an object of at most {MAX_METADATA} strings", "metadata")
    return metadata


def message_text(content: Any, kind: str, param: str) -> str:
    """The text of a message: a string, or a list of parts of this kind, each with its ``text``."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise bad_request(f"{param} must be a string or a list of text parts", param, "invalid_type")
    pieces = []
    for part in content:
        found = part.get("type") if isinstance(part, dict) else None
        if found != kind:
            raise bad_request(
                f"{param} has a part of the type {str(found)[:64]!r}; this server takes {kind}",
                param,
                "unsupported_content",
            )
        if not isinstance(part.get("text"), str):
            raise bad_request(f"{param} has a part whose text is not a string", param, "invalid_type")
        pieces.append(part["text"])
    return "".join(pieces)


def _number(name: str, value: Any, field: Field) -> Any:
    whole = field.datatype != "FP32"
    expected = "an integer" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise bad_request(f"{name} must be {expected}", name, "invalid_type")
    if not abs(value) <= GREATEST[field.datatype] or (field.limits is not None and not field.limits.allow(value)):
        raise bad_request(f"{name} is {str(value)[:64]}; it must be {expected} {field.limits}", name)
    return value
