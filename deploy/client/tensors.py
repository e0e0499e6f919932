"""Requests to a model of ours as tritonclient's tensors, and its responses as Python values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtstream.deploy.client.triton import make_tensor
from trtstream.deploy.contract import to_array
from trtstream.errors import TrtstreamError
from trtstream.runtime.request_fields import INPUTS, OUTPUTS, Field


def request_tensors(inputs: Mapping[str, Any]) -> list[Any]:
    """The tensors of `request_fields.INPUTS` by name, as Python values; None leaves one out."""
    return [
        make_tensor(name, INPUTS[name].datatype, to_array(value, INPUTS[name].datatype))
        for name, value in inputs.items()
        if value is not None
    ]


def response_values(result: Any, model: str) -> dict[str, Any]:
    """The fields of a `TurnOutput` in tritonclient's ``result``.

    ``model`` is the model's name, and where it is, for the TrtstreamError if it answers otherwise.
    """
    return {field.attribute: _value(field, result, model) for field in OUTPUTS.values()}


def _value(field: Field, result: Any, model: str) -> Any:
    """An output tensor as a Python value, or as a tuple of them for a vector."""
    array = result.as_numpy(field.name)
    if array is None:
        raise TrtstreamError(
            f"the model {model} answers without {field.name!r}: it was not packaged by trtstream; see --model-name"
        )
    values = array[0].tolist()
    if field.datatype == "BYTES":
        values = [value.decode("utf-8", "replace") for value in values]
    return tuple(values) if field.vector else values[0]
