"""The events of a streamed response, numbered from 0."""

from __future__ import annotations

from itertools import count
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
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
)

from trtstream.deploy.gateway.event_stream import event


class ResponseEvents:
    """For a response whose output is one message with one part, its text. ``message`` is without it."""

    def __init__(self, message: ResponseOutputMessage) -> None:
        self._message = message
        self._part = {"item_id": message.id, "output_index": 0, "content_index": 0}
        self._numbers = count()

    def begin(self, response: Response) -> bytes:
        """All events before the first text."""
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return b"".join(
            (
                self._event(ResponseCreatedEvent, "response.created", response=response),
                self._event(ResponseInProgressEvent, "response.in_progress", response=response),
                self._event(
                    ResponseOutputItemAddedEvent, "response.output_item.added", output_index=0, item=self._message
                ),
                self._event(ResponseContentPartAddedEvent, "response.content_part.added", part=part, **self._part),
            )
        )

    def delta(self, text: str) -> bytes:
        return self._event(ResponseTextDeltaEvent, "response.output_text.delta", delta=text, logprobs=[], **self._part)

    def end(self, response: Response, text: str) -> bytes:
        """All events after the last text, for a response that is complete or was cut at its limit of tokens."""
        (message,) = response.output
        assert isinstance(message, ResponseOutputMessage)
        (part,) = message.content
        complete = response.status == "completed"
        last = (ResponseCompletedEvent if complete else ResponseIncompleteEvent, f"response.{response.status}")
        return b"".join(
            (
                self._event(ResponseTextDoneEvent, "response.output_text.done", text=text, logprobs=[], **self._part),
                self._event(ResponseContentPartDoneEvent, "response.content_part.done", part=part, **self._part),
                self._event(ResponseOutputItemDoneEvent, "response.output_item.done", output_index=0, item=message),
                self._event(*last, response=response),
            )
        )

    def fail(self, response: Response) -> bytes:
        return self._event(ResponseFailedEvent, "response.failed", response=response)

    def _event(self, kind: type[BaseModel], name: str, **values: Any) -> bytes:
        values = {"type": name, "sequence_number": next(self._numbers), **values}
        return event(kind.model_validate(values), name)
