"""Reads one Triton request into a `TurnRequest`. Knows Triton's conventions, and nothing of its Python backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from trtstream.deploy.contract import REQUEST_NAME
from trtstream.errors import TrtstreamError
from trtstream.runtime.request_fields import INPUTS, Field
from trtstream.runtime.requests import SessionKey, TurnRequest
from trtstream.runtime.validation import MAX_INPUT_TOKENS, MAX_TEXT_CHARACTERS

MAX_TEXT_BYTES = 4 * MAX_TEXT_CHARACTERS  # UTF-8 takes up to 4 for a character
MIN_PUBLIC_SESSION_ID = 16  # characters
SEQUENCE_START, SEQUENCE_END = 1, 2  # bits of Triton's request flags
PARAMETERS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "sequence_id": (int, str),
    "sequence_start": bool,
    "sequence_end": bool,
    "timeout": int,
    REQUEST_NAME: str,
}
HEADERS = {"accept", "authorization", "b3", "baggage", "cookie", "forwarded", "host", "te", "traceparent", "tracestate"}
"""Headers without a ``-``. A name with one is always a header's: no parameter has any."""


@dataclass(frozen=True)
class Delivery:
    """How a request wants its turn's outputs: each as it comes (``stream``), or all in one response.

    ``counts_apart``: each response counts its own tokens, as in Triton's other LLM backends, and not all before it.
    """

    stream: bool = False
    counts_apart: bool = False


def parse_turn(
    tensors: Mapping[str, np.ndarray],
    *,
    parameters: Mapping[str, Any] = MappingProxyType({}),
    correlation_id: int | str = 0,
    flags: int = 0,
    timeout_us: int = 0,
    request_id: str = "",
    public: bool = False,
) -> tuple[TurnRequest, Delivery]:
    """The turn that a request asks for, and how it wants its outputs.

    ``tensors`` are the inputs by name, strings as arrays of bytes. ``correlation_id`` and ``flags`` carry Triton's
    sequence fields over gRPC; over HTTP they arrive in ``parameters``, as the request's id and ``timeout`` do.
    ``timeout_us`` is in microseconds; 0 is none. A ``public`` service takes session ids of at least 16 characters and
    no numbers. Raises TrtstreamError for what cannot be read; `Scheduler.submit` checks the values.
    """
    _check_parameters(parameters)
    if "seed" in tensors and "random_seed" in tensors:
        raise TrtstreamError("the request has both random_seed and seed, which are the same; send one of them")
    values = {INPUTS[name].attribute: _value(INPUTS[name], tensor) for name, tensor in tensors.items()}
    values.pop("return_num_input_tokens", None)  # they always are
    delivery = Delivery(values.pop("stream", False), values.pop("return_num_output_tokens", False))
    key = values.pop("session_key", None)
    if key is None:
        key = parameters.get("sequence_id") or correlation_id or None  # 0 and "" are Triton's "no sequence"
    if public and key is not None:
        _check_unguessable(key)
    timeout_us = timeout_us or parameters.get("timeout", 0)
    ends = values.pop("session_end", False) or parameters.get("sequence_end", False) or bool(flags & SEQUENCE_END)
    turn = TurnRequest(
        session_key=key,
        session_start=parameters.get("sequence_start", False) or bool(flags & SEQUENCE_START),
        session_end=ends,
        timeout=timeout_us / 1e6 if timeout_us else None,
        request_id=request_id,
        **values,
    )
    return turn, delivery


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        if REQUEST_NAME not in parameters and ("-" in name or name in HEADERS):
            continue  # a header: Triton passes on those that its options name, and serve's front none
        if name not in PARAMETERS:
            raise TrtstreamError(f"unknown request parameter or input {name!r}; see the model's inputs")
        expected = PARAMETERS[name]
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise TrtstreamError(f"request parameter {name!r} is {value!r}; it has the wrong type")


def _check_unguessable(key: SessionKey) -> None:
    if not isinstance(key, str):
        raise TrtstreamError("numeric sequence ids are refused on a public service: use a random session_id")
    if len(key) < MIN_PUBLIC_SESSION_ID:
        raise TrtstreamError(
            f"session_id has {len(key)} characters; a public service needs {MIN_PUBLIC_SESSION_ID} random ones or more"
        )


def _value(field: Field, tensor: np.ndarray) -> Any:
    """A tensor as a Python value, or as a tuple of them for a vector."""
    may_be_empty = field.datatype == "BYTES"  # no stop words are none; no ids are a mistake
    if field.vector and (tensor.ndim != 2 or len(tensor) != 1 or not (tensor.size or may_be_empty)):
        raise TrtstreamError(f"{field.name} has shape {list(tensor.shape)}; it must be [1, N] with N of at least 1")
    if not field.vector and tensor.shape != (1, 1):
        raise TrtstreamError(f"{field.name} has shape {list(tensor.shape)}; it must be [1, 1]")
    if tensor.size > MAX_INPUT_TOKENS:  # before each becomes a Python object
        raise TrtstreamError(f"{field.name} has {tensor.size} values; send at most {MAX_INPUT_TOKENS} in one turn")
    items = tuple(tensor[0].tolist())
    if field.datatype == "BYTES":
        items = tuple(_text(field.name, item) for item in items)
    return items if field.vector else items[0]


def _text(name: str, value: bytes | str) -> str:
    if len(value) > MAX_TEXT_BYTES:  # before it is copied
        raise TrtstreamError(f"{name} has {len(value)} bytes; at most {MAX_TEXT_CHARACTERS} characters are allowed")
    try:
        return value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError as error:
        raise TrtstreamError(f"{name} is not UTF-8 (byte {error.start}); encode it as UTF-8") from None
