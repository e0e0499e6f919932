"""Reading Triton requests, without Triton."""

from __future__ import annotations

import numpy as np
import pytest

from trtstream.deploy.serving.triton_request import Delivery, parse_turn
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnRequest


def string(*values: bytes) -> np.ndarray:
    return np.array([values], dtype=np.object_)


TEXT = {"text_input": string(b"hi")}


@pytest.mark.parametrize("name", ["x-session-id", "user-agent", "traceparent", "authorization"])
def test_a_header_that_triton_passes_on_is_no_parameter(name: str) -> None:
    plain, _ = parse_turn(TEXT)
    assert parse_turn(TEXT, parameters={name: "v"}) == (plain, Delivery())
    # serve's front passes on what the client's JSON has, and no header.
    with pytest.raises(TrtstreamError, match=f"unknown request parameter or input '{name}'"):
        parse_turn(TEXT, parameters={name: "v", "trtstream-request": "r"})


def test_every_input_has_its_field() -> None:
    tensors = {
        "text_input": string("größer".encode()),
        "max_tokens": np.array([[7]], np.int32),
        "stream": np.array([[True]]),
        "chat": np.array([[True]]),
        "system": string(b"Be kind."),
        "session_id": string(b"me"),
        "session_end": np.array([[True]]),
        "session_tokens": np.array([[12]], np.int32),
        "temperature": np.array([[0.5]], np.float32),
        "top_k": np.array([[3]], np.int32),
        "top_p": np.array([[0.25]], np.float32),
        "repetition_penalty": np.array([[1.5]], np.float32),
        "random_seed": np.array([[2**64 - 1]], np.uint64),
        "stop_words": string(b"a", b"b"),
        "end_id": np.array([[2]], np.int32),
        "ignore_eos": np.array([[True]]),
        "return_log_probs": np.array([[True]]),
    }
    turn, delivery = parse_turn(tensors, timeout_us=1_500_000, request_id="r")
    assert delivery == Delivery(stream=True)
    assert turn == TurnRequest(
        text="größer",
        max_tokens=7,
        chat=True,
        system="Be kind.",
        session_key="me",
        session_end=True,
        session_tokens=12,
        temperature=0.5,
        top_k=3,
        top_p=0.25,
        repetition_penalty=1.5,
        random_seed=2**64 - 1,
        stop_words=("a", "b"),
        end_id=2,
        ignore_eos=True,
        return_log_probs=True,
        timeout=1.5,
        request_id="r",
    )


def test_an_empty_list_of_stop_words_is_none() -> None:
    assert parse_turn({**TEXT, "stop_words": string()}) == parse_turn(TEXT)


def test_what_is_left_out_has_its_default() -> None:
    assert parse_turn({"input_ids": np.array([[1, 2]], np.int32)}) == (TurnRequest(input_ids=(1, 2)), Delivery())


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"correlation_id": 7, "flags": 1}, {"session_key": 7, "session_start": True}),
        ({"correlation_id": "7", "flags": 2}, {"session_key": "7", "session_end": True}),
        ({"correlation_id": 7, "flags": 3}, {"session_key": 7, "session_start": True, "session_end": True}),
        ({"correlation_id": 0}, {}),
        ({"correlation_id": ""}, {}),
        ({"parameters": {"sequence_id": 9, "sequence_start": True}}, {"session_key": 9, "session_start": True}),
        ({"parameters": {"sequence_id": "x", "sequence_end": True}}, {"session_key": "x", "session_end": True}),
        ({"parameters": {"timeout": 2500000, "id": "abc"}}, {"timeout": 2.5}),
    ],
)
def test_sequences_and_parameters(options: dict, fields: dict) -> None:
    assert parse_turn(TEXT, **options)[0] == TurnRequest(text="hi", **fields)


@pytest.mark.parametrize(
    ("tensors", "options", "named"),
    [
        ({"text_input": string(b"\xff")}, {}, "text_input is not UTF-8"),
        ({"text_input": string(b"a"), "stop_words": string(b"a", b"\xc3")}, {}, "stop_words is not UTF-8"),
        ({"text_input": string(b"a", b"b")}, {}, r"text_input has shape \[1, 2\]; it must be \[1, 1\]"),
        ({"text_input": string()}, {}, r"text_input has shape \[1, 0\]"),
        ({"text_input": string(b"a")[0]}, {}, r"text_input has shape \[1\]"),
        ({"input_ids": np.zeros([1, 0], np.int32)}, {}, r"input_ids has shape \[1, 0\]"),
        ({"input_ids": np.zeros([2], np.int32)}, {}, r"input_ids has shape \[2\]; it must be \[1, N\]"),
        ({"input_ids": np.zeros([2, 1], np.int32)}, {}, r"input_ids has shape \[2, 1\]"),
        ({name: np.array([[1]], np.uint64) for name in ("seed", "random_seed")}, {}, "both random_seed and seed"),
        (TEXT, {"parameters": {"foo": 1}}, "'foo'"),
        (TEXT, {"parameters": {"sequence_id": True}}, "'sequence_id' is True"),
        (TEXT, {"parameters": {"sequence_id": 1.5}}, "'sequence_id' is 1.5"),
        (TEXT, {"parameters": {"sequence_start": 1}}, "'sequence_start' is 1"),
        (TEXT, {"parameters": {"timeout": "soon"}}, "'timeout' is 'soon'"),
        (TEXT, {"public": True, "correlation_id": 7}, "numeric sequence ids are refused"),
        (TEXT, {"public": True, "parameters": {"sequence_id": 123456789012345678}}, "numeric"),
        (TEXT, {"public": True, "correlation_id": "fifteen letters"}, "15 characters"),
        ({**TEXT, "session_id": string(b"short")}, {"public": True}, "5 characters"),
        ({**TEXT, "session_id": string(b"")}, {"public": True}, "0 characters"),
    ],
)
def test_refusals(tensors: dict, options: dict, named: str) -> None:
    with pytest.raises(TrtstreamError, match=named):
        parse_turn(tensors, **options)


def test_a_public_service_takes_long_ids_and_none() -> None:
    key = "sixteen letters!"
    assert parse_turn({**TEXT, "session_id": string(key.encode())}, public=True)[0].session_key == key
    assert parse_turn(TEXT, public=True)[0].session_key is None
