"""One turn of a model on Triton, from an event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc

from trtstream.deploy.client.tensors import response_values
from trtstream.deploy.contract import parse_error
from trtstream.deploy.gateway.triton import TritonService, request_message
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnOutput

Outputs = AsyncGenerator[TurnOutput, None]
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL)
"""How a stream ends whose server is gone: a proxy resets it with one of the last two."""
WENT_AWAY = "the server went away in the middle of an answer; ask again"


def fed_before(last: TurnOutput) -> int:
    """How many tokens of a turn's conversation had been fed before it, by its last output.

    A turn feeds the last token of the answer before it, then its input, then its answer except the last token.
    """
    return max(last.session_tokens - last.num_input_tokens - last.num_output_tokens, 0)


def read_again(recalled: Sequence[int]) -> dict[str, Any]:
    """``recalled``, an extension of answers to turns that read something again: a list of [turn, first, end).

    The turn's number in the conversation is from 1 on; first and end are tokens, as in ``token_range``.
    """
    spans = [list(recalled[at : at + 3]) for at in range(0, len(recalled), 3)]
    return {"recalled": spans} if spans else {}


async def run_turn(
    triton: TritonService, model: str, inputs: dict[str, Any], request_id: str, headers: dict[str, str]
) -> Outputs:
    """Send one request, with `request_message`'s inputs, and yield its responses.

    Closing the generator before its end cancels the turn. Raises TrtstreamError, with the code of the model's error
    where it has one, and ``unavailable`` where Triton is away.
    """
    call = triton.stream(request_message(model, inputs, request_id), headers)
    ended = False
    try:
        async for answer in call:
            if answer.error_message:
                code, message = parse_error(" ".join(answer.error_message.split()))
                raise TrtstreamError(message.removeprefix(f"{request_id}: "), code)
            output = TurnOutput(**response_values(answer.infer_response, repr(model)))
            ended = bool(output.finish_reason)
            yield output
        if not ended:
            raise TrtstreamError(WENT_AWAY, "internal")
    except grpc.RpcError as error:
        if error.code() not in LOST:
            raise TrtstreamError(f"Triton: {error.details()}") from error
        raise TrtstreamError(WENT_AWAY, "unavailable") from error
    finally:
        call.cancel()
