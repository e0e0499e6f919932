"""Responses that are looked at again, deleted, and gathered in conversations."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import openai
import pytest

from tests.deploy.gateway.test_responses import OPTIONS, SYSTEM, TEXTS, on_triton, previous
from tests.deploy.server import Server
from trtstream.sessions.turn_log import TurnLog

pytestmark = pytest.mark.triton

NOWHERE = "resp_" + "0" * 32


def test_a_response_is_found_again(client: openai.OpenAI) -> None:
    options = {**OPTIONS, "temperature": 0.9, "metadata": {"a": "b"}, "extra_body": {"seed": 7}}
    plain = client.responses.create(input=TEXTS[0], instructions=SYSTEM, **options)
    found = client.responses.retrieve(plain.id)
    assert {**found.to_dict(), "completed_at": 0} == {**plain.to_dict(), "completed_at": 0}
    events = list(client.responses.create(input=TEXTS[1], previous_response_id=plain.id, stream=True, **options))
    last = events[-1].response
    for after in (-1, 0, 3, 5, len(events) - 2):
        where = {} if after < 0 else {"starting_after": after}
        replayed = list(client.responses.retrieve(last.id, stream=True, **where))
        assert replayed[:-1] == events[after + 1 : -1]
        assert replayed[-1].sequence_number == len(events) - 1
        assert replayed[-1].response.output == last.output
    assert list(client.responses.retrieve(last.id, stream=True, starting_after=len(events))) == []

    items = list(client.responses.input_items.list(last.id, order="asc", limit=1))
    texts = [item.content[0].text for item in items]
    assert texts == [TEXTS[0], plain.output_text, TEXTS[1]]
    assert [item.role for item in items] == ["user", "assistant", "user"]
    first, second = plain.usage, last.usage
    assert (events[0].response.input_tokens, last.input_tokens) == (second.input_tokens, second.input_tokens)
    ends = [0, first.input_tokens, first.total_tokens, second.input_tokens]
    assert [item.token_range for item in items] == [[*pair] for pair in pairwise(ends)]
    newest = client.responses.input_items.list(last.id, limit=2)
    assert newest.sink_tokens >= 4
    assert ([item.id for item in newest.data], newest.has_more) == ([items[2].id, items[1].id], True)
    for missing in (NOWHERE, "x", "msg_1"):
        for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
            with pytest.raises(openai.NotFoundError, match="there is no response"):
                ask(missing)
    for query in ({"starting_after": 1}, {"include": ["a"]}, {"stream": "yes"}):
        with pytest.raises(openai.BadRequestError):
            client.responses.retrieve(plain.id, extra_query=query)
    for query in ({"limit": 0}, {"order": "up"}, {"after": "msg_1"}):
        with pytest.raises(openai.BadRequestError):
            client.responses.input_items.list(last.id, extra_query=query)


def test_deleted_responses(server: Server, client: openai.OpenAI, store: str) -> None:
    """Of a chain the last, one in the middle, and the first: what continues them stays as it was."""
    expected = [answer for answer, _ in on_triton(server, TEXTS, "deleted")]
    chain: list[Any] = []
    for text in TEXTS[:3]:
        chain.append(client.responses.create(input=text, **previous(chain[-1] if chain else None), **OPTIONS))
    for deleted in (chain[1], chain[0]):
        client.responses.delete(deleted.id)
        for ask in (client.responses.retrieve, client.responses.delete):
            with pytest.raises(openai.NotFoundError):
                ask(deleted.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.create(input="x", previous_response_id=deleted.id, **OPTIONS)
    last = client.responses.create(input=TEXTS[3], previous_response_id=chain[2].id, **OPTIONS)
    assert [chain[2].output_text, last.output_text] == expected[2:]
    client.responses.delete(last.id)
    again = client.responses.create(input=TEXTS[3], previous_response_id=chain[2].id, **OPTIONS)
    assert again.output_text == last.output_text
    client.responses.delete(again.id)
    client.responses.delete(chain[2].id)
    log = TurnLog(store)
    assert [log.turn(bytes.fromhex(one.id.removeprefix("resp_"))) for one in (*chain, last, again)] == [None] * 5
    log.close()


def test_a_conversation_by_its_id(server: Server, client: openai.OpenAI) -> None:
    """It is a session: the same texts, and each turn feeds what is new."""
    conversation = client.conversations.create(metadata={"title": "First"})
    assert client.conversations.items.list(conversation.id).data == []
    answers, fed = [], 0
    for number, (text, (answer, tokens)) in enumerate(zip(TEXTS, on_triton(server, TEXTS, "by-id"), strict=True)):
        first = {"instructions": SYSTEM} if number == 0 else {}
        name: Any = conversation.id if number % 2 else {"id": conversation.id}
        response = client.responses.create(input=text, conversation=name, **first, **OPTIONS)
        assert response.conversation is not None
        assert (response.output_text, response.conversation.id) == (answer, conversation.id)
        assert response.usage is not None
        assert response.usage.input_tokens_details.cached_tokens == fed
        answers.append(answer)
        fed = tokens
    items = list(client.conversations.items.list(conversation.id, order="asc", limit=3))
    said = [text for pair in zip(TEXTS, answers, strict=True) for text in pair]
    assert [item.content[0].text for item in items] == said
    assert client.conversations.items.retrieve(items[3].id, conversation_id=conversation.id) == items[3]
    fork = client.responses.create(input="x", previous_response_id=response.id, **OPTIONS)
    assert len(client.conversations.items.list(conversation.id).data) == len(items)

    assert client.conversations.retrieve(conversation.id).metadata == {"title": "First"}
    assert client.conversations.update(conversation.id, metadata={"title": "Other"}).metadata == {"title": "Other"}
    other = client.conversations.create()
    known = client.get("/conversations", cast_to=object)
    assert [one["id"] for one in known["data"]][:2] == [other.id, conversation.id]
    assert client.conversations.delete(conversation.id).deleted
    for ask in (client.conversations.retrieve, client.conversations.delete, client.conversations.items.list):
        with pytest.raises(openai.NotFoundError):
            ask(conversation.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(input="x", conversation=conversation.id, **OPTIONS)
    client.responses.create(input="y", previous_response_id=fork.id, **OPTIONS)  # what it shares stays
    with pytest.raises(openai.BadRequestError, match="items"):
        client.conversations.create(items=[{"type": "message", "role": "user", "content": "x"}])
    with pytest.raises(openai.APIStatusError, match="come from its responses") as refused:
        client.conversations.items.delete("msg_1", conversation_id=other.id)
    assert (refused.value.status_code, refused.value.response.headers["allow"]) == (405, "GET, HEAD")
