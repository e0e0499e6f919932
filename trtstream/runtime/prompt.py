"""What a turn feeds: a request's text or ids as the tokens that its session lacks."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trtstream.errors import TrtstreamError
from trtstream.runtime import chat_template
from trtstream.runtime.requests import TurnRequest
from trtstream.settings import BuildConfig


@dataclass(frozen=True)
class Prompt:
    """``token_ids`` to feed; a new session starts with ``sink_token_length`` sinks."""

    token_ids: list[int]
    sink_token_length: int


def first_prompt(request: TurnRequest, tokenizer: PreTrainedTokenizerBase | None, build: BuildConfig) -> Prompt:
    """The prompt of a session's first turn, or of a one-shot request. A system text is pinned: all of it are sinks."""
    _check_tokenizer(request, tokenizer)
    if request.chat:
        text, system_characters = chat_template.first_turn(tokenizer, request.text, request.system)
        encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        ids, num_system = encoding.ids, sum(start < system_characters for start, _ in encoding.offsets)
    else:
        ids = [] if request.system is None else _encode(tokenizer, request.system, special_tokens=True)
        num_system = len(ids)
        if request.text is None:
            ids = [*ids, *map(int, request.input_ids)]
        else:
            ids = ids + _encode(tokenizer, request.text, special_tokens=not ids)
    if len(ids) == num_system:
        raise TrtstreamError("the request has no tokens to start from; send at least one")
    learned_sink = [] if build.sink_token is None else [build.sink_token]
    num_pinned = len(learned_sink) + num_system
    if num_system and num_pinned > build.max_sink_token_length:
        raise TrtstreamError(
            f"system has {num_pinned} tokens and this engine can pin {build.max_sink_token_length}; shorten it, "
            f"or build with --max-sink-token-length {num_pinned}"
        )
    return Prompt(learned_sink + ids, max(build.sink_token_length, num_pinned))


def next_prompt(request: TurnRequest, tokenizer: PreTrainedTokenizerBase | None, last_token: int) -> list[int]:
    """What a later turn feeds behind the session's last sampled token; nothing lets the answer just go on."""
    if request.system is not None:
        raise TrtstreamError("system is for a session's first turn, and this session has begun")
    _check_tokenizer(request, tokenizer)
    if request.chat:
        return _encode(tokenizer, chat_template.next_turn(tokenizer, request.text, last_token))
    return list(map(int, request.input_ids)) if request.text is None else _encode(tokenizer, request.text)


def _check_tokenizer(request: TurnRequest, tokenizer: PreTrainedTokenizerBase | None) -> None:
    if tokenizer is None and (request.text is not None or request.system is not None):
        raise TrtstreamError("the engine has no tokenizer; send input_ids, or build from a checkpoint that has one")
    if request.chat and not tokenizer.chat_template:
        raise TrtstreamError("the engine has no chat template; send the text as the model expects it, without chat")


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, special_tokens: bool = False) -> list[int]:
    # Not through transformers' own call: it sets options on the shared tokenizer, which other threads are using.
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=special_tokens).ids
