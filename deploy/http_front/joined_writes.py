"""Writes that come together leave together: an answer's head with the first of its body, and its end with the last."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Base = asyncio.Transport
else:
    Base = object  # else the base class's methods would hide those of the transport

MAX_BYTES = 1 << 16  # held back; the transport says when its client does not read


class JoinedWrites(Base):
    """``transport``, whose ``write`` waits until the event loop's next pass, for what is written until then.

    A write to a socket costs more than all that Python does for a small answer, and wakes the client up.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._waiting: list[bytes] = []
        self._bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:  # type: ignore[override]  # uvicorn writes bytes alone
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)
        self._bytes += len(data)
        if self._bytes > MAX_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._waiting:
            joined = b"".join(self._waiting)
            self._waiting.clear()
            self._bytes = 0
            self._transport.write(joined)
