"""Refuses an invalid request, with one line that names the field, its value and the allowed ones."""

from __future__ import annotations

import re
from dataclasses import replace
from numbers import Integral, Real

from trtstream.errors import TrtstreamError
from trtstream.runtime.messages import read_messages
from trtstream.runtime.request_fields import GREATEST, INPUTS, Limits
from trtstream.runtime.requests import TurnRequest
from trtstream.sessions.records import parse_turn_id

MAX_TEXT_CHARACTERS = 1 << 20
MAX_INPUT_TOKENS = 1 << 20
MAX_KEY_CHARACTERS = 256
MAX_STOP_WORDS = 32
MAX_STOP_WORD_CHARACTERS = 256
TENANT = re.compile(r"[A-Za-z0-9._-]{0,64}")


def validate(request: TurnRequest, vocab_size: int, max_tokens_limit: int | None = None) -> None:
    """Raise TrtstreamError for the first field of ``request`` that is wrong, whatever state its session is in."""
    _validate_input(request, vocab_size)
    _validate_session(request)
    _validate_numbers(request, vocab_size, max_tokens_limit)
    if request.timeout is not None:
        _number("timeout", request.timeout, Limits(0, above=True, note="seconds"))
    _text("the request's id", request.request_id, MAX_KEY_CHARACTERS)
    if len(request.stop_words) > MAX_STOP_WORDS:
        raise TrtstreamError(f"stop_words has {len(request.stop_words)} words; at most {MAX_STOP_WORDS} are allowed")
    for word in request.stop_words:
        _text("stop_words", word, MAX_STOP_WORD_CHARACTERS)
        if not word:
            raise TrtstreamError("stop_words has an empty word; each must have at least one character")


def _validate_input(request: TurnRequest, vocab_size: int) -> None:
    if request.messages is not None:
        _validate_messages(request)
        return
    if request.text is not None and request.input_ids is not None:
        raise TrtstreamError("the request has both text and input_ids; send one of them")
    if not request.has_input and not request.session_end:
        raise TrtstreamError("the request has neither text nor input_ids; send one of them")
    if request.text is not None:
        _text("text", request.text, MAX_TEXT_CHARACTERS)
    elif request.chat:
        raise TrtstreamError("chat needs text; input_ids are fed as they are")
    elif request.input_ids is None and request.system is not None:
        raise TrtstreamError("system needs text or input_ids after it")
    if request.system is not None:
        _text("system", request.system, MAX_TEXT_CHARACTERS)
        if not request.system.strip():
            raise TrtstreamError("system is empty; leave it out")
    if request.input_ids is not None:
        if len(request.input_ids) > MAX_INPUT_TOKENS:
            raise TrtstreamError(
                f"input_ids has {len(request.input_ids)} tokens; send at most {MAX_INPUT_TOKENS} in one turn"
            )
        wrong = next((i for i in request.input_ids if not isinstance(i, Integral) or not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise TrtstreamError(f"input_ids has {wrong!r}; a token id is an integer from 0 to {vocab_size - 1}")


def _validate_messages(request: TurnRequest) -> None:
    for name in ("text_input", "input_ids", "chat", "system", "session_id", "parent_turn"):
        attribute = INPUTS[name].attribute
        if getattr(request, attribute) is not getattr(TurnRequest, attribute):
            raise TrtstreamError(f"messages is a whole conversation, which belongs to no session; leave {name} out")
    _text("messages", request.messages, MAX_TEXT_CHARACTERS)
    for number, message in enumerate(read_messages(request.messages or "")):
        # A model may have written NUL, and clients send its answers back.
        content = message.content.replace("\0", "") if message.role == "assistant" else message.content
        _text(f"messages[{number}]", content, MAX_TEXT_CHARACTERS)
        if message.role == "system" and not message.content.strip():
            raise TrtstreamError(f"messages[{number}] is an empty system message; leave it out")


def _validate_session(request: TurnRequest) -> None:
    if not isinstance(request.tenant, str) or not TENANT.fullmatch(request.tenant):
        raise TrtstreamError(f"tenant is {request.tenant!r}; it has at most 64 letters, digits, '.', '_' and '-'")
    key = request.session_key
    if key is None:
        flags = ["session_start", "session_rewind"] + ["session_end"] * (request.messages is None)
        for name, unset in (*((flag, False) for flag in flags), ("session_tokens", None)):
            if getattr(request, name) is not unset:
                raise TrtstreamError(f"{name} needs a session; name one with session_id or sequence_id")
    elif isinstance(key, str):
        _text("session_id", key, MAX_KEY_CHARACTERS)
        if not key:
            raise TrtstreamError("session_id is empty; use at least one character, or leave it out")
    else:
        _integer("sequence_id", key, Limits(0))
        if request.tenant:
            raise TrtstreamError("a tenant's sessions are named by session_id; leave sequence_id out")
    if request.parent_turn is not None:
        parse_turn_id("parent_turn", request.parent_turn)
        if request.session_start:
            raise TrtstreamError("session_start begins a new session and parent_turn continues one; send one of them")
    elif request.session_rewind:
        raise TrtstreamError("session_rewind needs a parent_turn, the turn to go back to")
    if request.session_start and request.session_tokens:
        raise TrtstreamError(f"session_tokens is {request.session_tokens} with session_start; a new session has 0")


def _validate_numbers(request: TurnRequest, vocab_size: int, max_tokens_limit: int | None) -> None:
    """Check every field that has limits; two of them end at the vocabulary, one where the server says."""
    ends = {"top_k": (vocab_size, ""), "end_id": (vocab_size - 1, "")}
    if max_tokens_limit is not None:
        ends["max_tokens"] = (max_tokens_limit, "this server's --max-tokens-limit")
    for name, field in INPUTS.items():
        if field.limits is None:
            continue
        value, default = getattr(request, field.attribute), getattr(TurnRequest, field.attribute)
        if value is not default:
            limits = field.limits
            if name in ends:
                most, note = ends[name]
                limits = replace(limits, most=most, note=note or limits.note)
            (_number if field.datatype == "FP32" else _integer)(name, value, limits)


def _integer(name: str, value: object, limits: Limits) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or not limits.allow(int(value)):
        raise TrtstreamError(f"{name} is {value!r}; it must be an integer {limits}")


def _number(name: str, value: object, limits: Limits) -> None:
    if (
        not isinstance(value, Real)
        or isinstance(value, bool)
        or not value <= GREATEST["FP32"]
        or not limits.allow(float(value))
    ):
        raise TrtstreamError(f"{name} is {value!r}; it must be a number {limits}")


def _text(name: str, value: object, max_characters: int) -> None:
    if not isinstance(value, str):
        raise TrtstreamError(f"{name} is {value!r}; it must be a string")
    if len(value) > max_characters:
        raise TrtstreamError(f"{name} has {len(value)} characters; at most {max_characters} are allowed")
    if "\0" in value:
        raise TrtstreamError(f"{name} has a NUL character; remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise TrtstreamError(f"{name} has a lone surrogate at character {error.start}; remove it") from None
