"""Log-probabilities in OpenAI's protocols: transformers' own, for the tokens of the text and for no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.deploy.gateway.test_responses import post
from tests.deploy.server import Server
from trtstream.deploy.gateway.logprobs import Token, TokenReader
from trtstream.deploy.gateway.pieces import Piece, cut, to_keep

SAMPLING: dict[str, Any] = {"model": "trtstream", "temperature": 0.9, "extra_body": {"top_k": 20, "seed": 7}}
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
PROMPT = "<user>Hello\n<assistant>"
INCLUDE: Any = ["message.output_text.logprobs"]


@pytest.fixture(scope="module")
def oracle(engine: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(engine.parent / "checkpoint", dtype="float32")


def log_probs(oracle: Any, prompt: str, answer: str) -> Any:
    """Of the answer's tokens, each of which is a character, in float32. The engine sees all: 4 sinks, a ring of 32."""
    import torch

    ids = torch.tensor([list((prompt + answer).encode())])
    with torch.inference_mode():
        rows = oracle(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return pytest.approx(rows.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist(), abs=1e-3)


@pytest.mark.triton
def test_a_chat(oracle: Any, client: openai.OpenAI) -> None:
    """Plain, streamed, and with a stop word, whose tokens are not there."""
    create = client.chat.completions.create
    options: dict[str, Any] = {"messages": MESSAGES, "max_completion_tokens": 14, "top_logprobs": 0, **SAMPLING}
    (whole,) = create(logprobs=True, **options).choices
    text = whole.message.content or ""
    for stop in ([], [text[8:11]]):
        (choice,) = create(logprobs=True, stop=stop, **options).choices
        said = choice.message.content or ""
        assert choice.logprobs is not None
        tokens = choice.logprobs.content or []
        assert [token.logprob for token in tokens] == log_probs(oracle, PROMPT, said)
        assert bytes(byte for token in tokens for byte in token.bytes or ()) == said.encode()
        assert "".join(token.token for token in tokens) == said
        assert {str(token.top_logprobs) for token in tokens} == {"[]"}
        streamed = []
        for chunk in create(logprobs=True, stop=stop, stream=True, **options):
            assert chunk.choices[0].logprobs is not None
            new = chunk.choices[0].logprobs.content or []
            assert "".join(token.token for token in new) == (chunk.choices[0].delta.content or "")
            streamed += new
        assert streamed == tokens
    assert len(said) < len(text)
    assert create(**options).choices[0].logprobs is None


@pytest.mark.triton
def test_a_completion(oracle: Any, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"prompt": "Once upon", "max_tokens": 24, **SAMPLING}
    (choice,) = client.completions.create(logprobs=0, **options).choices
    found = choice.logprobs
    assert found is not None
    assert found.token_logprobs == log_probs(oracle, "Once upon", choice.text)
    assert "".join(found.tokens or []) == choice.text
    assert (found.text_offset, found.top_logprobs) == ([*range(len(choice.text))], None)
    chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(logprobs=0, stream=True, **options)]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [value for chunk in chunks for value in getattr(chunk, name)] == getattr(found, name)
    assert client.completions.create(**options).choices[0].logprobs is None


@pytest.mark.triton
def test_a_response(oracle: Any, client: openai.OpenAI) -> None:
    """Plain, streamed, and read from the store, as a whole and from the middle of its events on."""
    options: dict[str, Any] = {"input": "Hello", "max_output_tokens": 14, **SAMPLING}
    plain = client.responses.create(include=INCLUDE, **options)
    (part,) = plain.output[0].content  # type: ignore[union-attr]
    assert [token.logprob for token in part.logprobs] == log_probs(oracle, PROMPT, plain.output_text)
    assert bytes(byte for token in part.logprobs for byte in token.bytes) == plain.output_text.encode()
    assert client.responses.retrieve(plain.id, include=INCLUDE).output == plain.output

    events = list(client.responses.create(include=INCLUDE, stream=True, background=True, **options))
    expected = [token.to_dict() for token in part.logprobs]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [token.to_dict() for event in deltas for token in event.logprobs] == expected
    for event in deltas:
        assert "".join(token.token for token in event.logprobs) == event.delta
    (done,) = (event for event in events if event.type == "response.output_text.done")
    assert [token.to_dict() for token in done.logprobs] == expected
    end = events[-1].response  # type: ignore[union-attr]
    assert end.output[0].content == [part]
    assert list(client.responses.retrieve(end.id, stream=True, starting_after=9)) == events[10:]

    without = client.responses.create(**options)
    assert without.output[0].content[0].logprobs == []  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError, match="when it is made"):
        client.responses.retrieve(without.id, include=INCLUDE)
    with pytest.raises(openai.BadRequestError, match="must be message"):
        client.responses.retrieve(without.id, include=["reasoning.encrypted_content"])


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}, "top_logprobs"),
    ("chat/completions", {"messages": MESSAGES, "logprobs": 1}, "logprobs"),
    ("completions", {"prompt": "a", "logprobs": 1}, "logprobs"),
    ("completions", {"prompt": "a", "logprobs": False}, "logprobs"),
    ("responses", {"input": "a", "include": INCLUDE, "top_logprobs": 1}, "top_logprobs"),
    ("responses", {"input": "a", "include": ["file_search_call.results"]}, "include"),
    ("responses", {"input": "a", "include": INCLUDE[0]}, "include"),
]


@pytest.mark.triton
def test_the_likeliest_others_are_refused_by_name(server: Server) -> None:
    for path, body, param in BAD:
        status, answer = post(server, f"/v1/{path}", json.dumps({"model": "trtstream", **body}).encode())
        assert (status, answer["error"]["param"]) == (400, param), (body, answer)


def test_tokens_that_are_half_characters() -> None:
    """Their names have U+FFFD, their bytes are the character's, and what is kept gives the same tokens."""
    said = [(b"a", 0), (b" \xf0\x9f", 1), (b"\x98\x80", 2), (b"", 3), (b"b", 3)]
    pieces = [
        ("a ", [(1, -0.5)]),
        ("😀", [(3, -1.0), (2, -1.5), (0, -2.0)]),
        ("b", [(1, -2.5)]),
    ]
    reader = TokenReader()
    read = [Piece(text, reader.read(text, tokens)) for text, tokens in pieces]
    tokens = [token for piece in read for token in piece.tokens]
    assert tokens == [Token(text, -0.5 * (n + 1), offset) for n, (text, offset) in enumerate(said)]
    assert tokens[2].as_object()["token"] == "\ufffd\ufffd"
    assert cut("a 😀b", json.loads(json.dumps(to_keep(read)))) == read
    assert cut("another text", to_keep(read)) == [Piece("another text")]
