"""GET /openapi.json: every route is in it, with the limits by which requests are read, and what is not is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from trtstream.deploy.gateway import chat_completions, completions, response_requests
from trtstream.deploy.gateway.access import Access
from trtstream.deploy.gateway.admission import Shares
from trtstream.deploy.gateway.app import create_app
from trtstream.deploy.gateway.errors import ApiError
from trtstream.deploy.gateway.operations import OPERATIONS, description
from trtstream.deploy.gateway.state import Upstream
from trtstream.deploy.http_front.readiness import Readiness

REFUSED = {"POST /v1/responses/compact"}


def test_every_route_is_described() -> None:
    access = Access()
    app = create_app(Upstream({}, ["m"], Readiness()), access, Shares(access.limits))
    routes = {
        f"{method} {re.sub(':path}', '}', path)}"
        for route in app.routes
        if (path := getattr(route, "path", "")).startswith("/v1/")
        for method in getattr(route, "methods", ())
        if method != "HEAD"
    }
    assert OPERATIONS.keys() | REFUSED == routes


@pytest.mark.parametrize(
    ("protocol", "read", "openai"),
    [
        (response_requests, response_requests.ResponseRequest.read, response_create_params.ResponseCreateParamsBase),
        (chat_completions, chat_completions.read, chat_create_params.CompletionCreateParamsBase),
        (completions, completions.read, completion_create_params.CompletionCreateParamsBase),
    ],
    ids=["responses", "chat", "completions"],
)
def test_what_is_not_described_is_refused_by_name(
    protocol: Any, read: Callable[[dict[str, Any], list[str]], object], openai: Any
) -> None:
    """Of OpenAI's parameters, and of some without effect every value that would have one."""
    valid = {"model": "m", "input": "a", "messages": [{"role": "user", "content": "a"}], "prompt": "a"}
    body = {name: value for name, value in valid.items() if name in protocol.BODY["required"]}
    read(body, ["m"])
    names = openai.__required_keys__ | openai.__optional_keys__
    for name in sorted((names | {"include", "top_logprobs", "nothing_that_exists"}) - protocol.KNOWN):
        for value in ("?", 7, [7], {"a": 7}):
            with pytest.raises(ApiError) as caught:
                read({**body, name: value}, ["m"])
            error = caught.value.error
            assert (error.param, error.code, name in error.message) == (name, "unsupported_parameter", True)
    for name, values in protocol.WITHOUT_EFFECT.items():
        for value in values:
            read({**body, name: value}, ["m"])


def test_a_body_is_described_by_the_tables_that_read_it() -> None:
    described = description(("m",))
    post = described["paths"]["/v1/chat/completions"]["post"]
    body = post["requestBody"]["content"]["application/json"]["schema"]
    assert body["additionalProperties"] is False
    properties = body["properties"]
    number, null = properties["frequency_penalty"]["anyOf"]
    assert (number["type"], number["minimum"], number["maximum"], null) == ("number", -2, 2, {"type": "null"})
    assert properties["n"]["anyOf"][0] == {"enum": [1]}
    assert properties["messages"]["items"]["properties"]["role"]["enum"] == ["system", "developer", "user", "assistant"]
    assert properties["model"] == {"$ref": "#/components/schemas/ModelName"}
    assert described["components"]["schemas"]["ModelName"] == {"enum": ["m"]}
