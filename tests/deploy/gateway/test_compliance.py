"""llm-comply's tests of both protocols, and an extension: what a turn read again."""

from __future__ import annotations

import json
import subprocess
import sys
from string import ascii_uppercase
from typing import Any

import pytest

from tests.deploy.gateway.conftest import connect
from tests.deploy.server import Server

pytestmark = [pytest.mark.triton, pytest.mark.slow]

ANSWER = f"?@{ascii_uppercase}"
REFUSED = {
    "tool-calling": "it has no tools",
    "chat-tool-calling": "it has no tools",
    "image-input": "the models have no images",
    "chat-image-input": "the models have no images",
}
"""Tests of what the gateway does not do, and why."""
NOT_ASKED = {"reasoning-summary", "chat-reasoning-summary"}
"""Tests that llm-comply skips, as the model's name is none of a reasoning model of OpenAI's."""


@pytest.mark.parametrize("protocol", ["open-responses", "openai-chat"])
def test_compliance(counting_server: Server, protocol: str) -> None:
    options = ["--base-url", f"http://{counting_server.openai_url}/v1", "--api-key", "none", "--model", "trtstream"]
    code = "import sys; from llm_comply.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--format", protocol, *options, "--timeout", "100", "--json"]
    run = subprocess.run(command, capture_output=True, text=True)
    results: list[dict[str, Any]] = json.loads(run.stdout)["results"]
    errors = {one["id"]: str(one["errors"]) for one in results if one["status"] == "failed"}
    assert errors.keys() == {one["id"] for one in results} & REFUSED.keys(), errors
    assert all("HTTP 400" in error for error in errors.values()), errors
    assert {one["id"] for one in results if one["status"] == "skipped"} <= NOT_ASKED
    assert sum(one["status"] == "passed" for one in results) >= 6


def test_what_was_read_again(counting_server: Server) -> None:
    """It is in the response, when that is looked at again, in the conversation's items, and in chat completions."""
    fact = "Otto lives in Rome."
    question = "Where does Otto live?"
    with connect(counting_server) as client:
        response = client.responses.create(model="trtstream", input=fact)
        assert response.output_text == ANSWER
        assert not hasattr(response, "recalled")
        known = client.responses.input_items.list(response.id, order="asc").data[0].token_range  # type: ignore[union-attr]
        messages: list[Any] = [{"role": "user", "content": fact}, {"role": "assistant", "content": ANSWER}]
        for number in range(4):
            text = f"In the beginning was a word, the {number + 1}st of many. " * 4
            response = client.responses.create(model="trtstream", input=text, previous_response_id=response.id)
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": ANSWER}]
        more = {"recall": 60}
        response = client.responses.create(
            model="trtstream", input=question, previous_response_id=response.id, extra_body=more
        )
        (span,) = response.recalled  # type: ignore[attr-defined]
        assert span[0] == 1
        assert known[0] <= span[1] < span[2] <= known[1]
        assert client.responses.retrieve(response.id).recalled == [span]  # type: ignore[attr-defined]
        items = client.responses.input_items.list(response.id, order="asc").data
        assert [getattr(item, "recalled", None) for item in items] == [None] * 10 + [[span]]

        messages.append({"role": "user", "content": question})
        asked: dict[str, Any] = {"model": "trtstream", "messages": messages, "extra_body": more}
        assert client.chat.completions.create(**asked).recalled == [span]
        *_, last = client.chat.completions.create(stream=True, **asked)
        assert last.recalled == [span]
