"""What chat completions and completions have in common: their requests, usage, and the events of a stream."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from openai.types import CompletionUsage
from openai.types.completion_usage import PromptTokensDetails

from trtstream.deploy.gateway.errors import model_error
from trtstream.deploy.gateway.event_stream import DONE
from trtstream.deploy.gateway.logprobs import INPUT, Token, TokenReader
from trtstream.deploy.gateway.parameters import Body, Schema, refuse_others, take, without_nulls
from trtstream.deploy.gateway.schemas import FLAG, body_schema
from trtstream.deploy.gateway.turns import Outputs, fed_before
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnOutput

OPTIONS: dict[str, Schema] = {"include_usage": FLAG}
OPTIONS_WITHOUT_EFFECT = {"include_obfuscation": (False,)}
STREAM_OPTIONS = body_schema({}, OPTIONS, OPTIONS_WITHOUT_EFFECT)


@dataclass(frozen=True)
class CompletionRequest:
    """``inputs`` are the model's. ``id`` and ``created`` are in the answer and in each of its chunks."""

    model: str
    inputs: dict[str, Any]
    stream: bool
    include_usage: bool
    id: str
    created: int

    @property
    def has_logprobs(self) -> bool:
        return bool(self.inputs.get(INPUT))

    @classmethod
    def new(cls, model: str, inputs: dict[str, Any], body: Body, prefix: str) -> CompletionRequest:
        """``prefix`` begins the id. Raises ApiError for what is wrong in ``stream_options``."""
        include_usage = take_include_usage(body)
        return cls(model, inputs, inputs["stream"], include_usage, prefix + secrets.token_hex(16), int(time.time()))


def usage_of(last: TurnOutput) -> CompletionUsage:
    """Tokens of the whole conversation, which has one more than it was fed: the last sampled one."""
    total = last.session_tokens + 1
    return CompletionUsage(
        prompt_tokens=total - last.num_output_tokens,
        completion_tokens=last.num_output_tokens,
        total_tokens=total,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=fed_before(last)),
    )


def take_include_usage(body: Body) -> bool:
    """Whether a stream ends with a chunk that has the usage."""
    options = without_nulls(take(body, "stream_options", dict, {}))
    refuse_others(options, OPTIONS, OPTIONS_WITHOUT_EFFECT)
    return take(options, "include_usage", bool, False)


async def chunks(
    first: TurnOutput,
    outputs: Outputs,
    chunk: Callable[[TurnOutput, Sequence[Token], bool], bytes],
    usage: Callable[[TurnOutput], bytes] | None,
) -> AsyncGenerator[bytes, None]:
    """``chunk(output, tokens, is_first)`` of each output, ``usage(last)`` if asked for, and the end of a stream."""
    async with contextlib.aclosing(outputs):
        reader = TokenReader()
        yield chunk(first, reader.take(first), True)
        last = first
        try:
            async for last in outputs:
                tokens = reader.take(last)
                if last.text or tokens or last.finish_reason:
                    yield chunk(last, tokens, False)
        except TrtstreamError as error:
            yield f"data: {json.dumps(model_error(error).body)}\n\n".encode()
            return
        if usage is not None:
            yield usage(last)
        yield DONE
