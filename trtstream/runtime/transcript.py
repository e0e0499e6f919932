"""What a conversation has said, as a hash: the same for everyone who has the same roles and texts so far.

So a client's list of messages finds the turn that ended with them. White space at a message's ends does not count,
because clients and templates strip it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from trtstream.runtime.messages import Message
from trtstream.runtime.requests import TurnRequest

EMPTY = bytes(32)


def transcript_after(transcript: bytes, messages: Iterable[Message]) -> bytes:
    """The hash (32 bytes) of a conversation with this ``transcript`` and these messages after it."""
    for message in messages:
        text = f"{message.role}\n{message.content.strip()}".encode()
        transcript = hashlib.sha256(transcript + text).digest()
    return transcript


def transcript_with(request: TurnRequest, before: bytes | None) -> bytes | None:
    """The transcript once ``request``, a turn of a session, has asked; ``before`` is that of the turn it continues.

    None where it is not known what was said by whom: the turn, or one before it, was text or ids without ``chat``.
    """
    if before is None or not request.chat or request.text is None:
        return None
    system = [] if request.system is None else [Message("system", request.system)]
    return transcript_after(before, [*system, Message("user", request.text)])
