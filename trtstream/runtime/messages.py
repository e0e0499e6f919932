"""A whole conversation as a request has it: JSON of objects with a role and a text."""

from __future__ import annotations

import json
from dataclasses import dataclass

from trtstream.errors import TrtstreamError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    role: str
    content: str


def read_messages(text: str) -> list[Message]:
    """The messages, of which only the first may be the system's and the last is the user's.

    Raises TrtstreamError for anything else.
    """
    try:
        objects = json.loads(text)
    except (ValueError, RecursionError):
        raise TrtstreamError("messages is not JSON; send a list of objects with role and content") from None
    if not isinstance(objects, list) or not objects:
        raise TrtstreamError("messages must be a list of at least one message")
    messages = [_message(f"messages[{number}]", values) for number, values in enumerate(objects)]
    late = next((number for number, message in enumerate(messages) if number and message.role == "system"), None)
    if late is not None:
        raise TrtstreamError(f"messages[{late}] is a system message; only the first can be one")
    if messages[-1].role != "user":
        raise TrtstreamError(f"messages ends with the role {messages[-1].role!r}; the last must be a user's")
    return messages


def _message(name: str, values: object) -> Message:
    if not isinstance(values, dict) or values.keys() != {"role", "content"}:
        raise TrtstreamError(f"{name} must be an object with role and content, and nothing else")
    role, content = values["role"], values["content"]
    if role not in ROLES:
        raise TrtstreamError(f"{name} has the role {role!r}; use {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise TrtstreamError(f"the content of {name} is not a string")
    return Message(role, content)
