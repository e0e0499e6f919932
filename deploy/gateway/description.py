"""Routes as OpenAPI describes them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from openai.types.shared import ErrorObject
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from trtstream import __version__
from trtstream.deploy.gateway.parameters import Schema
from trtstream.deploy.gateway.schemas import COMPONENT, TEXT

VERSION = "3.2.0"
EVENTS: dict[str, Any] = {
    "itemSchema": {"type": "object", "properties": {"event": TEXT, "data": TEXT}, "required": ["data"]}
}


@dataclass(frozen=True)
class Operation:
    """What a route does, takes and answers.

    ``answers`` are the types of which an answer has one, or with ``is_list``, any number. ``query`` has the schemas of
    the URL's parameters, ``body`` that of the request's JSON. With ``streams`` there may be events.
    """

    summary: str
    answers: tuple[type[BaseModel], ...] = ()
    query: dict[str, Schema] = field(default_factory=dict)
    body: Schema | None = None
    is_list: bool = False
    streams: bool = False


def describe(operations: Mapping[str, Operation], models: Collection[str]) -> dict[str, Any]:
    """The description of each route, which is named as "GET /path", over ``models``."""
    answers = {answer for operation in operations.values() for answer in operation.answers} | {ErrorObject}
    ordered = sorted(answers, key=lambda answer: answer.__name__)
    schemas, definitions = models_json_schema([(answer, "serialization") for answer in ordered], ref_template=COMPONENT)
    names = {answer: schemas[answer, "serialization"] for answer in answers}
    error = {"type": "object", "properties": {"error": names[ErrorObject]}, "required": ["error"]}
    paths: dict[str, dict[str, Any]] = {}
    for route, operation in operations.items():
        method, path = route.split()
        paths.setdefault(path, {})[method.lower()] = _operation(path, operation, names)
    return {
        "openapi": VERSION,
        "info": {"title": "trtstream gateway", "version": __version__},
        "security": [{}, {"key": []}],  # a gateway may have no keys
        "paths": paths,
        "components": {
            "schemas": {**definitions["$defs"], "Error": error, "ModelName": {"enum": [*models]}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, operation: Operation, names: dict[type[BaseModel], Schema]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": TEXT} for name in re.findall(r"{(\w+)}", path)
    ]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query.items()]
    described: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "Done.", "content": _content(operation, names)},
            "default": {"description": "Why not.", "content": _json({"$ref": COMPONENT.format(model="Error")})},
        },
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(operation.body)}
    return described


def _content(operation: Operation, names: dict[type[BaseModel], Schema]) -> dict[str, Any]:
    schemas = [names[answer] for answer in operation.answers]
    schema: Schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas} if schemas else {"type": "object"}
    if operation.is_list:
        schema = {
            "type": "object",
            "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": schema}},
            "required": ["object", "data"],
        }
    return _json(schema) | ({"text/event-stream": EVENTS} if operation.streams else {})


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
