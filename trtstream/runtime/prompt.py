"""The tokens that a turn feeds: a request's text or ids, and whatever else its session lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trtstream.errors import TrtstreamError
from trtstream.runtime import chat_template
from trtstream.runtime.encoding import PLACE, encode, encode_first, encode_shielded, shield, text_of
from trtstream.runtime.messages import Message, read_messages
from trtstream.runtime.recalling import Block
from trtstream.runtime.requests import TurnRequest
from trtstream.settings import BuildConfig

if TYPE_CHECKING:
    from trtstream.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """``token_ids`` to feed; a new session starts with ``sink_token_length`` sinks."""

    token_ids: list[int]
    sink_token_length: int


@dataclass(frozen=True)
class LaterPrompt:
    """``token_ids`` to feed behind a session's pending token; those at ``recalled`` are copies of earlier ones."""

    token_ids: list[int]
    recalled: range = range(0)


def first_prompt(request: TurnRequest, tokenizer: Tokenizer | None, build: BuildConfig) -> Prompt:
    """The prompt of a session's first turn, or of a one-shot request. All tokens of a system text are sinks.

    Raises TrtstreamError if the engine's tokenizer or template cannot serve the request, and if there are no tokens, or
    more system tokens than the engine can pin.
    """
    learned_sink = [] if build.sink_token is None else [build.sink_token]
    if request.messages is not None:
        tokenizer = _with_template(tokenizer)
        messages = read_messages(request.messages)
        text, system_characters = chat_template.conversation(tokenizer, _shielded(tokenizer, messages))
        ids, starts = encode_shielded(tokenizer, text)
        num_system = sum(start < system_characters for start in starts)
        if len(learned_sink) + num_system > build.max_sink_token_length:
            num_system = 0  # not pinned: as any other message
    elif request.chat and request.text is not None:
        tokenizer = _with_template(tokenizer)
        system = None if request.system is None else shield(tokenizer, request.system)
        text, system_characters = chat_template.first_turn(tokenizer, shield(tokenizer, request.text), system)
        ids, starts = encode_shielded(tokenizer, text)
        num_system = sum(start < system_characters for start in starts)
    elif request.text is not None:
        system = request.system or ""
        ids, starts = encode_first(_required(tokenizer), system + request.text)
        num_system = sum(start < len(system) for start in starts)
    else:
        ids = [] if request.system is None else encode_first(_required(tokenizer), request.system)[0]
        num_system = len(ids)
        ids += _input_ids(request)
    if not ids or (len(ids) == num_system and not (request.text or request.messages)):
        raise TrtstreamError("the request has no tokens to start from; send at least one")
    num_pinned = len(learned_sink) + num_system
    if num_system and num_pinned > build.max_sink_token_length:
        raise TrtstreamError(
            f"system has {num_pinned} tokens and this engine can pin {build.max_sink_token_length}; shorten it, "
            f"or build with --max-sink-token-length {num_pinned}"
        )
    return Prompt(learned_sink + ids, max(build.sink_token_length, num_pinned))


def next_prompt(
    request: TurnRequest, tokenizer: Tokenizer | None, last_token: int, block: Block | None = None
) -> LaterPrompt:
    """The tokens of a later turn, fed after the session's last sampled one; with none the answer continues.

    What is read again, the ``block``, is in front of the turn's own text or ids.

    Raises TrtstreamError for a system text, and if the engine's tokenizer or template cannot serve the request.
    """
    if request.system is not None:
        raise TrtstreamError("system is for a session's first turn, and this session has begun")
    if request.chat and request.text is not None:
        return rest_of_messages([Message("user", request.text)], tokenizer, last_token, block=block)
    recalled: list[int] = []
    if block is not None:
        recalled = block.ids(_required(tokenizer), text_of(_required(tokenizer), last_token))
    if request.text is None:
        ids = _input_ids(request)
    else:
        tokenizer = _required(tokenizer)
        ids = encode(tokenizer, request.text, text_of(tokenizer, [last_token, *recalled][-1]))[0]
    return LaterPrompt(recalled + ids, range(len(recalled)))


def rest_of_messages(
    messages: Sequence[Message],
    tokenizer: Tokenizer | None,
    last_token: int,
    has_system: bool = False,
    block: Block | None = None,
) -> LaterPrompt:
    """The tokens of ``messages`` behind an answer, whose last sampled token is ``last_token``, up to the next answer.

    ``has_system``: the conversation begins with a system message. The ``block`` begins the last message.
    """
    tokenizer = _with_template(tokenizer)
    shielded = _shielded(tokenizer, messages)
    if block is not None:
        shielded[-1] = replace(shielded[-1], content=PLACE + shielded[-1].content)
    text = chat_template.next_turn(tokenizer, shielded, last_token, has_system)
    head, place, rest = text.partition(PLACE)
    ids = encode_shielded(tokenizer, head, text_of(tokenizer, last_token))[0]
    if block is None or not place:
        return LaterPrompt(ids)
    recalled = block.ids(tokenizer, text_of(tokenizer, [last_token, *ids][-1]))
    rest = rest.replace(PLACE, "")
    end = encode_shielded(tokenizer, rest, text_of(tokenizer, recalled[-1]))[0]
    return LaterPrompt(ids + recalled + end, range(len(ids), len(ids) + len(recalled)))


def shows_history(tokenizer: Tokenizer | None, has_system: bool) -> bool:
    """Whether conversations go on behind what has been fed of them; else they are fed whole."""
    return chat_template.shows_history(_with_template(tokenizer), has_system)


def _shielded(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[Message]:
    return [replace(message, content=shield(tokenizer, message.content)) for message in messages]


def _input_ids(request: TurnRequest) -> list[int]:
    return [int(token) for token in request.input_ids or ()]


def _required(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise TrtstreamError("the engine has no tokenizer; send input_ids, or build from a checkpoint that has one")
    return tokenizer


def _with_template(tokenizer: Tokenizer | None) -> Tokenizer:
    tokenizer = _required(tokenizer)
    if not tokenizer.chat_template:
        raise TrtstreamError("the engine has no chat template; send the text as the model expects it, without chat")
    return tokenizer
