"""Thirty turns of openai-python with asyncio in three ways, plain and streamed: the texts of one session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest

from tests.deploy.gateway.test_responses import SYSTEM, on_triton
from tests.deploy.server import Server

pytestmark = [pytest.mark.triton, pytest.mark.slow]

TURNS = 30
TEXTS = tuple(f"Question {number}? " * (1 + number % 5) for number in range(TURNS))
Told = tuple[str, int]  # a text, and how many tokens needed no computing
Turn = Callable[[str], Awaitable[Told]]


def by_previous_response(client: openai.AsyncOpenAI, stream: bool) -> Turn:
    last: dict[str, Any] = {"instructions": SYSTEM}

    async def turn(text: str) -> Told:
        nonlocal last
        response = await ask(client, stream, input=text, **last)
        last = {"previous_response_id": response.id}
        return response.output_text, response.usage.input_tokens_details.cached_tokens

    return turn


def by_conversation(client: openai.AsyncOpenAI, stream: bool) -> Turn:
    first: dict[str, Any] = {"instructions": SYSTEM}
    conversation: str | None = None

    async def turn(text: str) -> Told:
        nonlocal first, conversation
        conversation = conversation or (await client.conversations.create()).id
        response = await ask(client, stream, input=text, conversation=conversation, **first)
        first = {}
        return response.output_text, response.usage.input_tokens_details.cached_tokens

    return turn


def by_history(client: openai.AsyncOpenAI, stream: bool) -> Turn:
    messages: list[Any] = [{"role": "system", "content": SYSTEM}]

    async def turn(text: str) -> Told:
        messages.append({"role": "user", "content": text})
        options: dict[str, Any] = {"model": "trtstream", "messages": messages, "max_completion_tokens": 20}
        if stream:
            options |= {"stream": True, "stream_options": {"include_usage": True}}
            chunks = [chunk async for chunk in await client.chat.completions.create(**options)]
            answer = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
            usage = chunks[-1].usage
        else:
            completion = await client.chat.completions.create(**options)
            answer, usage = completion.choices[0].message.content, completion.usage
        messages.append({"role": "assistant", "content": answer})
        return answer, usage.prompt_tokens_details.cached_tokens

    return turn


async def ask(client: openai.AsyncOpenAI, stream: bool, **options: Any) -> Any:
    options |= {"model": "trtstream", "max_output_tokens": 20}
    if not stream:
        return await client.responses.create(**options)
    events = [event async for event in await client.responses.create(stream=True, **options)]
    return events[-1].response


@pytest.mark.parametrize("way", [by_previous_response, by_conversation, by_history])
@pytest.mark.parametrize("stream", [False, True])
def test_thirty_turns(server: Server, way: Callable[[openai.AsyncOpenAI, bool], Turn], stream: bool) -> None:
    expected = on_triton(server, TEXTS, f"{way.__name__} {stream}")

    async def converse() -> list[Told]:
        url = f"http://{server.openai_url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            turn = way(client, stream)
            return [await turn(text) for text in TEXTS]

    told = asyncio.run(converse())
    assert [text for text, _ in told] == [text for text, _ in expected]
    assert [cached for _, cached in told] == [0, *(tokens for _, tokens in expected[:-1])]
