"""A response while it is made, and its events for whoever listens, from any of them on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from openai.types.responses import Response

from trtstream.deploy.gateway.errors import ApiError, model_error
from trtstream.deploy.gateway.logprobs import TokenReader
from trtstream.deploy.gateway.pieces import Piece
from trtstream.deploy.gateway.response_events import FIRST_DELTA, ResponseEvents
from trtstream.deploy.gateway.response_objects import finished, message
from trtstream.deploy.gateway.turns import Outputs
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnOutput


class Progress:
    """``begun`` is the response's object while it is in progress. Its text comes in ``pieces``."""

    def __init__(self, begun: dict[str, Any]) -> None:
        self.begun = begun
        self.pieces: list[Piece] = []
        self.response = self._in_progress = Response.model_validate(begun)
        self._tokens = TokenReader()
        self._last: TurnOutput | None = None
        self._changed = asyncio.Event()

    @property
    def id(self) -> str:
        return self.response.id

    @property
    def is_over(self) -> bool:
        return self.response.status != "in_progress"

    async def run(self, first: TurnOutput, outputs: Outputs) -> None:
        """Take the outputs of the response's turn. When this is cancelled, so are the turn and the response."""
        error: ApiError | None = None
        cancelled = True
        self._take(first)
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    self._take(output)
            cancelled = False
        except TrtstreamError as failure:
            error, cancelled = model_error(failure), False
        finally:
            self._end(finished(self.begun, self.pieces, self._last, time.time(), error, cancelled))

    def end(self, pieces: Sequence[Piece], last: TurnOutput, completed: float) -> None:
        """The response is over already, with this last output."""
        self.pieces = [*pieces]
        self._end(finished(self.begun, self.pieces, last, completed))

    async def over(self) -> None:
        """Wait for the response's end."""
        while not self.is_over:
            await self._changed.wait()

    async def events(self, after: int = -1) -> AsyncGenerator[bytes, None]:
        """The events with numbers above ``after``, as they come, several joined; first those that exist, if any."""
        events = ResponseEvents(message(self.id))
        ready = events.begin(self._in_progress)[after + 1 :]
        sent = max(after + 1 - FIRST_DELTA, 0)
        while True:
            changed, is_over = self._changed, self.is_over
            more = self.pieces[sent:]
            ready += [events.delta(FIRST_DELTA + sent + i, piece) for i, piece in enumerate(more)]
            yield b"".join(ready)
            sent, ready = sent + len(more), []
            if is_over:
                break
            await changed.wait()
        number = FIRST_DELTA + len(self.pieces)
        if end := events.end(number, self.response)[max(after + 1 - number, 0) :]:
            yield b"".join(end)

    def _take(self, output: TurnOutput) -> None:
        self._last = output
        tokens = self._tokens.take(output)
        if output.text or tokens:
            self.pieces.append(Piece(output.text, tokens))
        self._tell()

    def _end(self, response: Response) -> None:
        self.response = response
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
