"""POST /v1/completions: a text goes on. No chat template, no conversation."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from openai.types import Completion, CompletionChoice
from openai.types.completion_choice import Logprobs
from starlette.responses import JSONResponse

from trtstream.deploy.gateway.completion_stream import STREAM_OPTIONS, CompletionRequest, chunks, usage_of
from trtstream.deploy.gateway.errors import bad_request
from trtstream.deploy.gateway.event_stream import EventStream, event
from trtstream.deploy.gateway.logprobs import INPUT, Token, TokenReader
from trtstream.deploy.gateway.parameters import (
    SAMPLING,
    Body,
    Schema,
    model_inputs,
    refuse_others,
    take,
    take_model,
)
from trtstream.deploy.gateway.schemas import FLAG, MODEL, STOP, TEXT, body_schema
from trtstream.deploy.gateway.turns import Outputs
from trtstream.runtime.request_fields import INT32_MAX
from trtstream.runtime.requests import TurnOutput

PARAMETERS = {**SAMPLING, "max_tokens": "max_tokens"}
IDS: Schema = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": INT32_MAX}}
OTHERS: dict[str, Schema] = {
    "model": MODEL,
    "prompt": {"anyOf": [TEXT, IDS, {"type": "array", "minItems": 1, "maxItems": 1, "items": {"anyOf": [TEXT, IDS]}}]},
    "logprobs": {"type": "integer", "minimum": 0, "maximum": 0},
    "stop": STOP,
    "stream": FLAG,
    "stream_options": STREAM_OPTIONS,
}
KNOWN = {*PARAMETERS, *OTHERS}
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "logit_bias": ({},),
    "n": (1,),
    "suffix": ("",),
}
BODY = body_schema(PARAMETERS, OTHERS, WITHOUT_EFFECT, required=("model", "prompt"))


def read(body: Body, models: list[str]) -> CompletionRequest:
    """Raises ApiError for what is wrong, or not supported."""
    model = take_model(body, models)
    refuse_others(body, KNOWN, WITHOUT_EFFECT)
    stream = take(body, "stream", bool, False)
    inputs = {**_prompt(body), "stream": stream, INPUT: _takes_logprobs(body), **model_inputs(body, PARAMETERS)}
    return CompletionRequest.new(model, inputs, body, "cmpl-")


async def complete(request: CompletionRequest, outputs: Outputs) -> JSONResponse | EventStream:
    """The response to send. Raises TrtstreamError for a turn that failed before its first token."""
    first = await anext(outputs)
    if request.stream:
        usage = partial(_event, request, None, ()) if request.include_usage else None
        return EventStream(chunks(first, outputs, lambda output, tokens, _: _event(request, output, tokens), usage))
    async with contextlib.aclosing(outputs):
        completion = _completion(request, first, TokenReader().take(first), first)
        return JSONResponse(completion.model_dump(exclude_unset=True))


def _event(
    request: CompletionRequest, output: TurnOutput | None, tokens: Sequence[Token], last: TurnOutput | None = None
) -> bytes:
    return event(_completion(request, output, tokens, last))


def _completion(
    request: CompletionRequest, output: TurnOutput | None, tokens: Sequence[Token], last: TurnOutput | None
) -> Completion:
    """The object with this output, and with the usage at the ``last`` one."""
    values: dict[str, Any] = {"id": request.id, "created": request.created, "model": request.model}
    if output is not None:
        reason: Any = output.finish_reason or None  # its type has no null, which streams have
        values["choices"] = [
            CompletionChoice.model_construct(
                index=0, text=output.text, finish_reason=reason, logprobs=_logprobs(request, tokens)
            )
        ]
    else:
        values["choices"] = []
    if request.include_usage or not request.stream:
        values["usage"] = None if last is None else usage_of(last)
    return Completion.model_construct(**values, object="text_completion")


def _logprobs(request: CompletionRequest, tokens: Sequence[Token]) -> Logprobs | None:
    if not request.has_logprobs:
        return None
    return Logprobs(
        tokens=[token.name for token in tokens],
        token_logprobs=[token.log_prob for token in tokens],
        text_offset=[token.offset for token in tokens],
        top_logprobs=None,
    )


def _takes_logprobs(body: Body) -> bool:
    """Whether the chosen tokens' log-probabilities are asked for; 0 is the number of others beside them."""
    if body.get("logprobs", 0) != 0 or isinstance(body.get("logprobs"), bool):
        message = "logprobs must be 0: there are the log-probabilities of the chosen tokens, and of no others"
        raise bad_request(message, "logprobs", "unsupported_parameter")
    return "logprobs" in body


def _prompt(body: Body) -> dict[str, Any]:
    """The prompt as one of the model's inputs: a string or token ids, alone or in a list of one."""
    if "prompt" not in body:
        raise bad_request("prompt is missing", "prompt", "missing_required_parameter")
    prompt = body["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        (prompt,) = prompt
    if isinstance(prompt, str):
        return {"text_input": prompt}
    if isinstance(prompt, list) and prompt and all(_is_id(token) for token in prompt):
        return {"input_ids": prompt}
    raise bad_request("prompt must be one string, or one list of token ids", "prompt", "unsupported_content")


def _is_id(token: object) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and 0 <= token <= INT32_MAX
