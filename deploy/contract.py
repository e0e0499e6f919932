"""Shared by both ends of the Triton model, besides the tensors' names: arrays of values, and codes of errors."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from trtstream.errors import printable
from trtstream.runtime.request_fields import ERROR_CODES

if TYPE_CHECKING:
    import numpy as np

DTYPES = {"BOOL": "bool", "BYTES": "object", "FP32": "float32", "INT32": "int32", "UINT64": "uint64"}
REQUEST_NAME = "trtstream-request"
"""The parameter in which the HTTP front names a request to the model."""

SESSION_HEADER = "x-session-id"
"""The header by which a proxy in front of several servers sends a session's turns to one of them."""

CODE = re.compile(rf"\[({'|'.join(ERROR_CODES)})\] ")


def to_array(value: Any, datatype: str) -> np.ndarray:
    """A tensor of a value or of a list or tuple of values: of shape [1, N], text as UTF-8 bytes."""
    import numpy as np

    items = value if isinstance(value, (list, tuple)) else [value]
    if datatype == "BYTES":
        items = [item.encode("utf-8", "replace") for item in items]
    return np.array([items], dtype=DTYPES[datatype])


def format_error(code: str, request_id: str, message: str) -> str:
    """An error as it is sent: its code, and the request's id where there is one, as tritonclient's streams drop it.

    In one line, whatever a client has put into its id.
    """
    return f"[{code}] {printable(request_id)}: {message}" if request_id else f"[{code}] {message}"


def routing_headers(conversation: str) -> dict[str, str]:
    """The headers with which all turns of a conversation go to one server; none for a turn without one.

    ``conversation`` is what its turns have in common, as a session's id. It is hashed: an id is a key to the
    conversation, which a proxy's log need not have, and may have characters that a header cannot.
    """
    if not conversation:
        return {}
    return {SESSION_HEADER: hashlib.sha256(conversation.encode("utf-8", "replace")).hexdigest()[:32]}


ENLARGE_SHARED_MEMORY = (
    "free some of it or enlarge it (docker run --shm-size 256m; elsewhere mount -o remount,size=256m /dev/shm)"
)


NO_INPUTS = (
    "request has 0 inputs",
    "the request has no inputs; send text_input, input_ids or messages, or session_end to end a session",
)
"""What Triton says of a request without a tensor, which the model does not get; and the same in our words."""


def plain_message(message: str) -> str:
    """Triton's own error in our words, where a user can do something about it; else as it is."""
    if "shared memory" in message.lower():
        return f"the server's /dev/shm is full: {ENLARGE_SHARED_MEMORY}"
    return NO_INPUTS[1] if NO_INPUTS[0] in message else message


def parse_error(message: str) -> tuple[str | None, str]:
    """(The code, or None, and the rest) of an error as it was received. Ensembles put their own words before it."""
    match = CODE.search(message)
    return (match[1], message[match.end() :]) if match else (None, plain_message(message))
