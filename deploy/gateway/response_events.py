"""The events of a streamed response, numbered from 0: four before its text, one for each piece, the last after it."""

from __future__ import annotations

from typing import Any

from openai import BaseModel
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseFailedEvent,
    ResponseIncompleteEvent,
    ResponseInProgressEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
)

from trtstream.deploy.gateway.event_stream import event
from trtstream.deploy.gateway.pieces import Piece

FIRST_DELTA = 4
"""The number of the first piece's event."""


class ResponseEvents:
    """For a response whose output is one message with one part, its text. ``message`` is without it."""

    def __init__(self, message: ResponseOutputMessage) -> None:
        self._message = message
        self._part = {"item_id": message.id, "output_index": 0, "content_index": 0}

    def begin(self, response: Response) -> list[bytes]:
        """All events before the first text."""
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {"output_index": 0, "item": self._message}
        return [
            _event(ResponseCreatedEvent, "created", 0, response=response),
            _event(ResponseInProgressEvent, "in_progress", 1, response=response),
            _event(ResponseOutputItemAddedEvent, "output_item.added", 2, **item),
            _event(ResponseContentPartAddedEvent, "content_part.added", 3, part=part, **self._part),
        ]

    def delta(self, number: int, piece: Piece) -> bytes:
        values = {"delta": piece.text, "logprobs": [token.as_object() for token in piece.tokens]}
        return _event(ResponseTextDeltaEvent, "output_text.delta", number, **values, **self._part)

    def end(self, number: int, response: Response) -> list[bytes]:
        """All events after the last text, from this number on."""
        if response.status == "failed":
            return [_event(ResponseFailedEvent, "failed", number, response=response)]
        (message,) = response.output
        assert isinstance(message, ResponseOutputMessage)
        (part,) = message.content
        assert isinstance(part, ResponseOutputText)
        logprobs = [token.to_dict() for token in part.logprobs or ()]
        done = {"text": part.text, "logprobs": logprobs}
        last: type[BaseModel] = ResponseCompletedEvent if response.status == "completed" else ResponseIncompleteEvent
        name = "completed" if response.status == "completed" else "incomplete"
        return [
            _event(ResponseTextDoneEvent, "output_text.done", number, **done, **self._part),
            _event(ResponseContentPartDoneEvent, "content_part.done", number + 1, part=part, **self._part),
            _event(ResponseOutputItemDoneEvent, "output_item.done", number + 2, output_index=0, item=message),
            _event(last, name, number + 3, response=response),
        ]


def _event(kind: type[BaseModel], name: str, number: int, **values: Any) -> bytes:
    name = f"response.{name}"
    return event(kind.model_validate({"type": name, "sequence_number": number, **values}), name)
