"""openai-python's completions on a real server: a text or ids go on, plain and streamed."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.deploy.gateway.test_responses import post
from tests.deploy.server import Server
from trtstream.deploy.client.client import Client

pytestmark = pytest.mark.triton

TEXT = "Once upon a time"
OPTIONS: dict[str, Any] = {"model": "trtstream", "max_tokens": 20}


def test_a_text_goes_on(server: Server, client: openai.OpenAI) -> None:
    sampling = {"temperature": 0.9, "top_k": 20}
    with Client(server.grpc_url) as triton:
        expected = triton.answer(text_input=TEXT, max_tokens=20)
        sampled = triton.answer(text_input=TEXT, max_tokens=20, random_seed=7, **sampling)
    for prompt in (TEXT, [TEXT], list(TEXT.encode()), [list(TEXT.encode())]):
        completion = client.completions.create(prompt=prompt, **OPTIONS)
        (choice,) = completion.choices
        assert (choice.text, choice.finish_reason) == (expected.text, expected.finish_reason)
        assert completion.usage is not None
        assert completion.usage.prompt_tokens == expected.num_input_tokens
    usage = {"include_usage": True}
    *chunks, last = client.completions.create(prompt=TEXT, stream=True, stream_options=usage, **OPTIONS)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, expected.finish_reason]
    assert (last.choices, last.usage) == ([], completion.usage)
    stop = sampled.text[len(sampled.text) // 2]
    seeded = {"prompt": TEXT, "seed": 7, "temperature": 0.9, "extra_body": {"top_k": 20}, **OPTIONS}
    assert client.completions.create(**seeded, n=1).choices[0].text == sampled.text
    cut = client.completions.create(**seeded, stop=[stop]).choices[0]
    assert (cut.text, cut.finish_reason) == (sampled.text.partition(stop)[0], "stop")


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "missing_required_parameter"),
    ({"prompt": ["a", "b"]}, "prompt", "unsupported_content"),
    ({"prompt": []}, "prompt", "unsupported_content"),
    ({"prompt": [1, "a"]}, "prompt", "unsupported_content"),
    ({"prompt": [True]}, "prompt", "unsupported_content"),
    ({"n": 2}, "n", "unsupported_parameter"),
    ({"echo": True}, "echo", "unsupported_parameter"),
    ({"suffix": "a"}, "suffix", "unsupported_parameter"),
]


def test_what_is_not_done_is_refused_by_name(server: Server) -> None:
    for wrong, param, code in BAD:
        body = json.dumps({"model": "trtstream", "prompt": "a", **wrong}).encode()
        status, answer = post(server, "/v1/completions", body)
        assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, param, code), (wrong, answer)
