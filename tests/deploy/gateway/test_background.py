"""Responses whose answers do not end by themselves: clients that leave, come back, or cancel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from tests.deploy.gateway.conftest import connect
from tests.deploy.server import Server, serving

pytestmark = pytest.mark.triton

OPTIONS: dict[str, Any] = {"model": "trtstream", "max_output_tokens": 10_000_000, "input": "Hello"}


@pytest.fixture(scope="module")
def endless(endless_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A drain waits for turns, and these would take an hour: none may be left in the end."""
    folder = tmp_path_factory.mktemp("endless")
    limits = ("--max-tokens-limit", "10000000", "--drain-timeout", "20")
    store = ("--session-store", f"sqlite:///{folder}/sessions.db")
    with serving(endless_engine, folder / "log", "--openai-port", "0", *limits, *store) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()


@pytest.fixture
def client(endless: Server) -> Iterator[openai.OpenAI]:
    with connect(endless) as client:
        yield client


def test_clients_that_leave_end_their_turns(client: openai.OpenAI) -> None:
    stream = client.responses.create(stream=True, **OPTIONS)
    left = next(iter(stream)).response.id
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1).responses.create(**OPTIONS)
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    chunks = client.chat.completions.create(
        model="trtstream", messages=messages, max_completion_tokens=10_000_000, stream=True
    )
    next(iter(chunks))
    chunks.close()
    again = client.with_options(max_retries=20).responses  # it is busy until its turn has ended
    answer = again.create(model="trtstream", input="x", max_output_tokens=1, previous_response_id=left)
    assert answer.usage.input_tokens_details.cached_tokens > 0  # what was said stays
    assert client.responses.retrieve(left).status == "cancelled"


def test_a_background_response_goes_on_without_its_client(client: openai.OpenAI) -> None:
    """Its events are the same for everybody who listens, from any number on, while it runs and after its end."""
    stream = client.responses.create(background=True, stream=True, metadata={"a": "b"}, **OPTIONS)
    seen = [event for event, _ in zip(stream, range(20), strict=False)]
    stream.close()
    response_id = seen[0].response.id
    running = client.responses.retrieve(response_id)
    assert (running.status, running.background, running.output) == ("in_progress", True, [])
    again = client.responses.retrieve(response_id, stream=True, starting_after=7)
    assert [event for event, _ in zip(again, range(12), strict=False)] == seen[8:]
    again.close()
    later = client.responses.retrieve(response_id, stream=True, starting_after=100)
    assert next(iter(later)).sequence_number == 101
    with pytest.raises(openai.ConflictError, match="in progress"):
        client.responses.delete(response_id)
    cancelled = client.responses.cancel(response_id)
    assert (cancelled.status, cancelled.metadata) == ("cancelled", {"a": "b"})
    *_, end = later
    assert (end.type, end.response.status) == ("response.incomplete", "cancelled")
    for starting_after in (-1, 7, 50, end.sequence_number - 1):
        after = {} if starting_after < 0 else {"starting_after": starting_after}
        events = list(client.responses.retrieve(response_id, stream=True, **after))
        assert [event.sequence_number for event in events] == [*range(starting_after + 1, end.sequence_number + 1)]
        assert events[-1] == end
        if starting_after < 0:
            assert events[: len(seen)] == seen
            deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
            assert "".join(deltas) == cancelled.output_text
    assert client.responses.cancel(response_id).status == "cancelled"
    again = client.with_options(max_retries=20).responses
    assert again.create(model="trtstream", input="x", max_output_tokens=1, previous_response_id=response_id).id


def test_a_background_response_is_asked_for_until_it_is_complete(client: openai.OpenAI) -> None:
    response = client.responses.create(background=True, **{**OPTIONS, "max_output_tokens": 400})
    assert response.background
    for _ in range(600):
        if (now := client.responses.retrieve(response.id)).status != "in_progress":
            break
        time.sleep(0.05)
    plain = client.responses.create(**{**OPTIONS, "max_output_tokens": 400})
    assert isinstance(now, Response)
    assert (now.status, now.output_text, now.usage) == ("incomplete", plain.output_text, plain.usage)
    with pytest.raises(openai.BadRequestError, match="background true"):
        client.responses.cancel(plain.id)
