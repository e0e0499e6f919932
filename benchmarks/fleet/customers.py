"""Clients of a fleet: each says the turns of its conversation, and repeats one until it is answered."""

from __future__ import annotations

import http.client
import json
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from random import Random
from typing import Any

from benchmarks.conversations import Conversation
from benchmarks.crash.kills import GIVE_UP_SECONDS
from trtstream.deploy.client.client import DEFAULT_MODEL, Client
from trtstream.deploy.gateway.response_objects import PREFIX
from trtstream.errors import TrtstreamError

PATIENCE_SECONDS = 15.0  # of a client: far more than Envoy takes to find that a server is gone
REPEAT_SECONDS = 0.3
ALLOWED = ("busy", "conflict", "draining", "unavailable", "unknown", None)


@dataclass
class Customer(ABC):
    """A conversation with the service at ``url``; seconds of ``pause`` pass between two turns on average."""

    conversation: Conversation
    url: str
    random: Random
    pause: float
    errors: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    """Seconds from the first sending of a turn to its answer."""
    began: float | None = None
    """When the turn was sent first that has no answer yet, in seconds of `time.monotonic`."""
    last_began: float = 0.0
    """The same of the last turn that has one."""

    def converse(self, turns: int, over: threading.Event) -> None:
        """Say up to ``turns`` turns; none begins once it is ``over``."""
        end = min(self.conversation.said + turns, len(self.conversation.script))
        while self.conversation.said < end and not over.wait(self.random.expovariate(1 / self.pause)):
            self.began = time.monotonic()
            self._say(self.began + GIVE_UP_SECONDS)
            self.waits.append(time.monotonic() - self.began)
            self.last_began, self.began = self.began, None

    def _say(self, give_up: float) -> None:
        conversation, attempt = self.conversation, 0
        while time.monotonic() < give_up:
            try:
                if self._is_answered(attempt):
                    return
            except TrtstreamError as error:
                self.errors[error.code or "gone"] += 1
                if error.code not in ALLOWED:
                    conversation.faults.append(f"{conversation.key}: turn {conversation.said} was refused: {error}")
                time.sleep(REPEAT_SECONDS)
                continue
            attempt += 1  # the connection was lost, and the server cut the turn short: it is taken back
            self.errors["cancelled"] += 1
        conversation.faults.append(f"{conversation.key}: turn {conversation.said} had no answer in the end")

    @abstractmethod
    def _is_answered(self, attempt: int) -> bool:
        """Send the next turn, and hear its answer; False for one that was cut short. Raises TrtstreamError."""


class GrpcCustomer(Customer):
    """Repeats a request with its id, so that every turn is there once."""

    def _is_answered(self, attempt: int) -> bool:
        conversation = self.conversation
        inputs: dict[str, Any] = {**conversation.inputs(), "session_rewind": attempt > 0 or None}
        with Client(self.url, timeout=PATIENCE_SECONDS) as client:
            answer = client.answer(request_id=f"{conversation.request_id(conversation.said)}#{attempt}", **inputs)
        if answer.finish_reason == "cancelled":
            return False
        conversation.hear(answer)
        return True


class GatewayCustomer(Customer):
    """Chats over OpenAI's /v1/responses, in a stream or not, as its conversation's turns come."""

    def _is_answered(self, attempt: int) -> bool:
        conversation = self.conversation
        turn = conversation.script[conversation.said]
        body = {"model": DEFAULT_MODEL, "input": turn.said, "max_output_tokens": len(turn.answer)}
        if conversation.turn_ids:
            body["previous_response_id"] = PREFIX + conversation.turn_ids[-1]
        response = self._create({**body, "stream": conversation.said % 2 == 0})
        if response["status"] == "failed":
            raise TrtstreamError(response["error"]["message"])
        if response["status"] == "cancelled":
            return False
        (message,) = response["output"]
        conversation.hear_text(message["content"][0]["text"], response["id"].removeprefix(PREFIX))
        return True

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        """The response's last state."""
        try:
            with closing(http.client.HTTPConnection(self.url, timeout=PATIENCE_SECONDS)) as connection:
                connection.request("POST", "/v1/responses", json.dumps(body))
                answer = connection.getresponse()
                text = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise TrtstreamError(f"the gateway is gone: {error!r}") from error
        if answer.status != HTTPStatus.OK:
            refused = json.loads(text)["error"]
            raise TrtstreamError(refused["message"], refused["code"])
        if body["stream"]:
            events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            text = json.dumps(events[-1].get("response", {"status": "cancelled"}))
        response: dict[str, Any] = json.loads(text)
        return response


def settle(customers: list[Customer]) -> None:
    """Wait until every turn is answered that was sent before now, and one that was sent later."""
    now = time.monotonic()

    def is_settled() -> bool:
        return all((one.began or now) >= now for one in customers) and any(one.last_began > now for one in customers)

    while not is_settled() and time.monotonic() < now + GIVE_UP_SECONDS:
        time.sleep(0.05)
