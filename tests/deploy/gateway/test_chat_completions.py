"""openai-python's chat completions on a real server: whole conversations, streams, refusals."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.deploy.gateway.test_responses import SYSTEM, TEXTS, on_triton, post
from tests.deploy.server import Server
from trtstream.deploy.client.client import Client

pytestmark = pytest.mark.triton

OPTIONS: dict[str, Any] = {"model": "trtstream", "max_completion_tokens": 12}
MESSAGES: list[Any] = [
    {"role": "developer", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
    {"role": "assistant", "content": "Hi.", "tool_calls": None},
    {"role": "user", "content": "And? " * 30},
]
AS_TEXT = f"<system>Be kind.\n<user>Hello\n<assistant>Hi.\n<user>{'And? ' * 30}\n<assistant>"
"""The conversation as the tests' template renders it."""


def test_a_whole_conversation(server: Server, client: openai.OpenAI) -> None:
    """Plain, streamed and with asyncio: the answer to the rendered text. Without a system message nothing is pinned."""
    messages, text = MESSAGES[1:], AS_TEXT.partition("\n")[2]
    with Client(server.grpc_url) as triton:
        expected = triton.answer(text_input=text, max_tokens=12)
        pinned = triton.answer(text_input=text, system="<system>Be kind.\n", max_tokens=12)
    plain = client.chat.completions.create(messages=messages, **OPTIONS)
    (choice,) = plain.choices
    assert (choice.message.content, choice.message.role) == (expected.text, "assistant")
    assert choice.finish_reason == expected.finish_reason
    assert plain.usage is not None
    assert (plain.usage.prompt_tokens, plain.usage.completion_tokens) == (
        expected.num_input_tokens,
        expected.num_output_tokens,
    )
    with_system = client.chat.completions.create(messages=MESSAGES, **OPTIONS)
    assert with_system.choices[0].message.content == pinned.text

    usage = {"include_usage": True}
    *chunks, last = client.chat.completions.create(messages=messages, stream=True, stream_options=usage, **OPTIONS)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, expected.finish_reason]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {last.id}
    assert (last.choices, last.usage) == ([], plain.usage)
    chunks = list(client.chat.completions.create(messages=messages, stream=True, **OPTIONS))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)

    async def ask() -> str:
        url = f"http://{server.openai_url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(messages=messages, stream=True, **OPTIONS)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == expected.text


def test_a_resent_history_is_a_session(server: Server, client: openai.OpenAI) -> None:
    """Each turn feeds what is new, as in the session whose texts it has; without `store` too, which keeps nothing."""
    options: dict[str, Any] = {"model": "trtstream", "max_completion_tokens": 20}
    messages: list[Any] = [{"role": "system", "content": SYSTEM}]
    fed = 0
    for text, (answer, tokens) in zip(TEXTS, on_triton(server, TEXTS, "resent"), strict=True):
        messages.append({"role": "user", "content": text})
        for store in (False, True, None):
            completion = client.chat.completions.create(messages=messages, store=store, **options)
            assert completion.choices[0].message.content == answer
            assert completion.usage is not None
            assert completion.usage.total_tokens == tokens + 1
            assert completion.usage.prompt_tokens_details is not None
            assert completion.usage.prompt_tokens_details.cached_tokens == fed
        messages.append({"role": "assistant", "content": answer})
        fed = tokens
    continued = client.chat.completions.create(messages=[*messages[:5], messages[1]], **options)
    assert continued.usage is not None
    assert continued.usage.prompt_tokens_details is not None
    assert 0 < (continued.usage.prompt_tokens_details.cached_tokens or 0) < fed


def test_sampling_and_stop(server: Server, client: openai.OpenAI) -> None:
    turn = {"text_input": "Hello", "chat": True, "max_tokens": 20, "random_seed": 7, "temperature": 0.9, "top_k": 20}
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    asked = {"model": "trtstream", "messages": messages, "max_tokens": 20, "seed": 7, "temperature": 0.9}
    penalties = {"frequency_penalty": 1.5, "presence_penalty": -0.5}
    with Client(server.grpc_url) as triton:
        whole = triton.answer(**turn).text
        stop = whole[len(whole) // 2]
        cut = triton.answer(**turn, stop_words=[stop]).text
        penalized = triton.answer(**turn, **penalties).text
    extra = {"extra_body": {"top_k": 20}}
    assert client.chat.completions.create(**asked, **extra).choices[0].message.content == whole
    choice = client.chat.completions.create(**asked, **extra, stop=stop, n=1).choices[0]
    assert (choice.message.content, choice.finish_reason) == (cut, "stop")
    assert penalized != whole
    assert client.chat.completions.create(**asked, **extra, **penalties).choices[0].message.content == penalized


USER = {"role": "user", "content": "a"}
BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": "a"}, "messages", "invalid_type"),
    ({"messages": []}, None, "invalid"),
    ({"messages": [USER, {"role": "tool", "content": "a"}]}, "messages[1]", "unsupported_content"),
    ({"messages": [USER, {"role": "system", "content": "a"}, USER]}, None, "invalid"),
    ({"messages": [USER, {"role": "assistant", "content": "a"}]}, None, "invalid"),
    ({"messages": [{**USER, "name": "b"}]}, "messages[0]", "unsupported_content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]", "unsupported_content"),
    ({"messages": [{"role": "user"}]}, "messages[0]", "invalid_type"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "invalid_json"),
    ({"n": 2}, "n", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"stream_options": {"colour": "red"}}, "colour", "unsupported_parameter"),
    ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "invalid_value"),
    ({"top_p": 2}, "top_p", "invalid_value"),
]


def test_what_is_wrong_or_not_done_is_refused_by_name(server: Server) -> None:
    for stream in (False, True):
        for wrong, param, code in BAD:
            body = json.dumps({"model": "trtstream", "messages": [USER], "stream": stream, **wrong}).encode()
            status, answer = post(server, "/v1/chat/completions", body)
            error = answer["error"]
            assert (status, error["param"], error["code"]) == (400, param, code), (wrong, answer)
            assert error["message"]
