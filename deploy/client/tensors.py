"""Requests to a model of ours as tritonclient's tensors, and its responses as Python values."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from trtstream.deploy.client.triton import make_tensor
from trtstream.deploy.contract import to_array
from trtstream.errors import TrtstreamError
from trtstream.runtime.request_fields import INPUTS, OUTPUTS, Field

CODES = {"BOOL": "?", "FP32": "f", "INT32": "i", "UINT64": "Q"}
"""struct's, which are little-endian as Triton's tensors are."""
LENGTH = struct.Struct("<I")


def request_tensors(inputs: Mapping[str, Any]) -> list[Any]:
    """The tensors of `request_fields.INPUTS` by name, as Python values; None leaves one out."""
    return [
        make_tensor(name, INPUTS[name].datatype, to_array(value, INPUTS[name].datatype))
        for name, value in inputs.items()
        if value is not None
    ]


def response_values(response: Any, model: str) -> dict[str, Any]:
    """The fields of a `TurnOutput` in ``response``, a ModelInferResponse.

    ``model`` is the model's name, and where it is, for the TrtstreamError if it answers otherwise. tritonclient's own
    reader makes an array of each tensor, which takes four times as long: a gateway does this for every token.
    """
    contents = {
        output.name: content for output, content in zip(response.outputs, response.raw_output_contents, strict=False)
    }
    try:
        return {field.attribute: _value(field, contents[name]) for name, field in OUTPUTS.items()}
    except KeyError as missing:
        raise TrtstreamError(
            f"the model {model} answers without {missing}: it was not packaged by trtstream; see --model-name"
        ) from None


def _value(field: Field, content: bytes) -> Any:
    """An output tensor as a Python value, or as a tuple of them for a vector."""
    values = _texts(content) if field.datatype == "BYTES" else _numbers(field.datatype, content)
    return values if field.vector else values[0]


def _numbers(datatype: str, content: bytes) -> tuple[Any, ...]:
    code = CODES[datatype]
    return struct.unpack(f"<{len(content) // struct.calcsize(code)}{code}", content)


def _texts(content: bytes) -> tuple[str, ...]:
    """Each comes after its length in bytes."""
    texts, at = [], 0
    while at < len(content):
        begin = at + LENGTH.size
        at = begin + LENGTH.unpack_from(content, at)[0]
        texts.append(content[begin:at].decode("utf-8", "replace"))
    return tuple(texts)
