"""The tokens that a turn feeds: a request's text or ids, and whatever else its session lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtstream.errors import TrtstreamError
from trtstream.runtime import chat_template
from trtstream.runtime.requests import TurnRequest
from trtstream.settings import BuildConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """``token_ids`` to feed; a new session starts with ``sink_token_length`` sinks."""

    token_ids: list[int]
    sink_token_length: int


def first_prompt(request: TurnRequest, tokenizer: PreTrainedTokenizerBase | None, build: BuildConfig) -> Prompt:
    """The prompt of a session's first turn, or of a one-shot request. All tokens of a system text are sinks.

    Raises TrtstreamError if the engine's tokenizer or template cannot serve the request, and if there are no tokens, or
    more system tokens than the engine can pin.
    """
    if request.chat and request.text is not None:
        tokenizer = _with_template(tokenizer)
        text, system_characters = chat_template.first_turn(tokenizer, request.text, request.system)
        encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        ids, num_system = encoding.ids, sum(start < system_characters for start, _ in encoding.offsets)
    else:
        system = [] if request.system is None else _encode(tokenizer, request.system, special_tokens=True)
        ids, num_system = system + _request_tokens(request, tokenizer, special_tokens=not system), len(system)
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
    """The tokens of a later turn, fed after the session's last sampled one; with none the answer continues.

    Raises TrtstreamError for a system text, and if the engine's tokenizer or template cannot serve the request.
    """
    if request.system is not None:
        raise TrtstreamError("system is for a session's first turn, and this session has begun")
    if request.chat and request.text is not None:
        tokenizer = _with_template(tokenizer)
        return _encode(tokenizer, chat_template.next_turn(tokenizer, request.text, last_token))
    return _request_tokens(request, tokenizer)


def _request_tokens(
    request: TurnRequest, tokenizer: PreTrainedTokenizerBase | None, special_tokens: bool = False
) -> list[int]:
    """The request's ids, or those of its text as it is."""
    if request.text is not None:
        return _encode(tokenizer, request.text, special_tokens)
    return [int(token) for token in request.input_ids or ()]


def _required(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise TrtstreamError("the engine has no tokenizer; send input_ids, or build from a checkpoint that has one")
    return tokenizer


def _with_template(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    tokenizer = _required(tokenizer)
    if not tokenizer.chat_template:
        raise TrtstreamError("the engine has no chat template; send the text as the model expects it, without chat")
    return tokenizer


def _encode(tokenizer: PreTrainedTokenizerBase | None, text: str, special_tokens: bool = False) -> list[int]:
    # Not with the tokenizer's __call__: that sets options on the shared tokenizer, which other threads are using.
    return _required(tokenizer).backend_tokenizer.encode(text, add_special_tokens=special_tokens).ids
