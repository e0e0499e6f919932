"""JSON schemas of what the gateway takes, from the tables by which it reads requests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from trtstream.deploy.gateway.parameters import MAX_METADATA, Schema
from trtstream.runtime.request_fields import GREATEST, INPUTS, Field
from trtstream.runtime.validation import MAX_STOP_WORD_CHARACTERS, MAX_STOP_WORDS

COMPONENT = "#/components/schemas/{model}"
"""Where a description has what it names once; pydantic fills in the name of a type."""

MODEL: Schema = {"$ref": COMPONENT.format(model="ModelName")}
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
WORD: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_WORD_CHARACTERS}
STOP: Schema = {"anyOf": [WORD, {"type": "array", "items": WORD, "maxItems": MAX_STOP_WORDS}]}
METADATA: Schema = {"type": "object", "additionalProperties": TEXT, "maxProperties": MAX_METADATA}


def body_schema(
    parameters: Mapping[str, str],
    others: Mapping[str, Schema],
    without_effect: Mapping[str, tuple[Any, ...]],
    required: Collection[str] = (),
) -> Schema:
    """Of a request's body: ``parameters`` are the model's inputs by name, and ``others`` have their own schemas.

    Those ``without_effect`` take some values alone. null is the same as nothing.
    """
    properties = {name: _number(INPUTS[tensor]) for name, tensor in parameters.items()}
    properties |= others
    properties |= {name: {"enum": [*values]} for name, values in without_effect.items()}
    return {
        "type": "object",
        "properties": {
            name: schema if name in required else {"anyOf": [schema, {"type": "null"}]}
            for name, schema in properties.items()
        },
        "required": [*required],
        "additionalProperties": False,
    }


def text_parts(kind: str) -> Schema:
    """A message's text: a string, or a list of parts of this ``kind``."""
    part = {"type": "object", "properties": {"type": {"const": kind}, "text": TEXT}, "required": ["type", "text"]}
    return {"anyOf": [TEXT, {"type": "array", "items": part, "minItems": 1}]}


def _number(field: Field) -> Schema:
    assert field.limits is not None
    return {
        "type": "number" if field.datatype == "FP32" else "integer",
        "description": field.meaning,
        "exclusiveMinimum" if field.limits.above else "minimum": field.limits.least,
        "maximum": GREATEST[field.datatype] if field.limits.most is None else field.limits.most,
    }
