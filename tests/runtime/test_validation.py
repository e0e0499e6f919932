from __future__ import annotations

import math

import pytest

from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnRequest
from trtstream.runtime.validation import validate

REFUSED = [
    ({}, "neither text nor input_ids"),
    ({"text": "a", "input_ids": (1,)}, "both text and input_ids"),
    ({"text": 7}, "text is 7; it must be a string"),
    ({"text": "a\0b"}, "text has a NUL character"),
    ({"text": "a\ud800"}, "text has a lone surrogate at character 1"),
    ({"text": "a" * (1 << 20 | 1)}, "text has 1048577 characters; at most 1048576"),
    ({"input_ids": (1, 100)}, "input_ids has 100; a token id is an integer from 0 to 99"),
    ({"input_ids": (-1,)}, "input_ids has -1"),
    ({"input_ids": (0.5,)}, "input_ids has 0.5"),
    ({"input_ids": (1,), "chat": True}, "chat needs text"),
    ({"text": "a", "system": " "}, "system is empty"),
    ({"session_key": "k", "session_end": True, "system": "s"}, "system needs text or input_ids"),
    ({"messages": "[]", "text": "a"}, "belongs to no session; leave text_input out"),
    ({"messages": "[]", "chat": True}, "leave chat out"),
    ({"text": "a", "tenant": "a/b"}, "tenant is 'a/b'; it has at most 64 letters"),
    ({"text": "a", "tenant": "a", "session_key": 77}, "leave sequence_id out"),
    ({"messages": "[]", "session_key": "k"}, "leave session_id out"),
    ({"messages": "[]", "parent_turn": "0" * 32}, "leave parent_turn out"),
    ({"messages": "[" * 100_000}, "messages is not JSON"),
    ({"messages": "{}"}, "a list of at least one message"),
    ({"messages": "[]"}, "a list of at least one message"),
    ({"messages": '["a"]'}, "messages[0] must be an object with role and content"),
    ({"messages": '[{"role": "user", "content": "a", "name": "b"}]'}, "and nothing else"),
    ({"messages": '[{"role": "tool", "content": "a"}]'}, "has the role 'tool'; use system, user, assistant"),
    ({"messages": '[{"role": "user", "content": 7}]'}, "is not a string"),
    ({"messages": '[{"role": "user", "content": "\\ud800"}]'}, "messages[0] has a lone surrogate"),
    ({"messages": '[{"role": "user", "content": "\\u0000"}]'}, "messages[0] has a NUL character"),
    ({"messages": '[{"role": "assistant", "content": "a"}]'}, "the last must be a user's"),
    ({"messages": '[{"role": "system", "content": " "}, {"role": "user", "content": "a"}]'}, "empty system message"),
    (
        {"messages": '[{"role": "user", "content": "a"}, {"role": "system", "content": "a"}]'},
        "only the first can be one",
    ),
    ({"text": "a", "session_key": ""}, "session_id is empty"),
    ({"text": "a", "session_key": "k" * 257}, "session_id has 257 characters"),
    ({"text": "a", "session_key": -1}, "sequence_id is -1"),
    ({"text": "a", "session_start": True}, "session_start needs a session"),
    ({"text": "a", "session_end": True}, "session_end needs a session"),
    ({"text": "a", "session_tokens": 0}, "session_tokens needs a session"),
    ({"text": "a", "session_key": "k", "session_tokens": -1}, "session_tokens is -1"),
    ({"text": "a", "session_key": "k", "session_start": True, "session_tokens": 5}, "a new session has 0"),
    ({"text": "a", "max_tokens": 0}, "max_tokens is 0; it must be an integer of at least 1"),
    ({"text": "a", "max_tokens": True}, "max_tokens is True"),
    ({"text": "a", "max_tokens": None}, "max_tokens is None"),
    ({"text": "a", "temperature": -0.1}, "temperature is -0.1; it must be a number of at least 0 (0 is greedy)"),
    ({"text": "a", "temperature": math.nan}, "temperature is nan"),
    ({"text": "a", "temperature": 10**400}, "temperature is 1000"),
    ({"text": "a", "temperature": "hot"}, "temperature is 'hot'"),
    ({"text": "a", "top_k": -1}, "top_k is -1; it must be an integer from 0 to 100"),
    ({"text": "a", "top_k": 101}, "top_k is 101"),
    ({"text": "a", "top_p": 0.0}, "top_p is 0.0; it must be a number above 0 and at most 1"),
    ({"text": "a", "top_p": 1.1}, "top_p is 1.1"),
    ({"text": "a", "repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ({"text": "a", "repetition_penalty": math.inf}, "repetition_penalty is inf"),
    ({"text": "a", "frequency_penalty": 2.5}, "frequency_penalty is 2.5; it must be a number from -2 to 2 (0 is off)"),
    ({"text": "a", "presence_penalty": math.nan}, "presence_penalty is nan"),
    ({"text": "a", "random_seed": 2**64}, "random_seed is 18446744073709551616"),
    ({"text": "a", "end_id": 100}, "end_id is 100; it must be an integer from 0 to 99"),
    ({"text": "a", "timeout": 0.0}, "timeout is 0.0; it must be a number above 0 (seconds)"),
    ({"text": "a", "stop_words": ("",)}, "stop_words has an empty word"),
    ({"text": "a", "stop_words": ("a",) * 33}, "stop_words has 33 words; at most 32"),
    ({"text": "a", "stop_words": ("a" * 257,)}, "stop_words has 257 characters"),
    ({"text": "a", "request_id": "a" * 257}, "the request's id has 257 characters; at most 256"),
    ({"text": "a", "parent_turn": "ab"}, "parent_turn is 'ab'; a turn's id has 32 hexadecimal digits"),
    ({"text": "a", "session_key": "s", "session_rewind": True}, "session_rewind needs a parent_turn"),
    ({"text": "a", "parent_turn": "ab" * 16, "session_rewind": True}, "session_rewind needs a session"),
    (
        {"text": "a", "session_key": "s", "session_start": True, "parent_turn": "ab" * 16},
        "session_start begins a new session and parent_turn continues one",
    ),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refused(fields, message):
    with pytest.raises(TrtstreamError) as error:
        validate(TurnRequest(**fields), vocab_size=100)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ""},
        {"text": "naïve 😀", "temperature": 1.5, "top_k": 100, "top_p": 1.0, "random_seed": 2**64 - 1, "end_id": 99},
        {"input_ids": (0, 99), "session_key": 0, "session_tokens": 0, "session_start": True},
        {"session_key": "k", "session_end": True},
    ],
)
def test_allowed(fields):
    validate(TurnRequest(**fields), vocab_size=100)
