"""One turn of a model on Triton, from an event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from trtstream.deploy.client.tensors import request_tensors, response_values
from trtstream.deploy.contract import parse_error
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnOutput

if TYPE_CHECKING:
    from tritonclient.grpc.aio import InferenceServerClient

Outputs = AsyncGenerator[TurnOutput, None]
WINDOW_SIZES = ("max_attention_window", "sink_token_length")
CONFIG_SECONDS = 2.0
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


async def window_sizes(triton: InferenceServerClient, model: str) -> dict[str, int]:
    """The sizes of a model's window in tokens, by the names of its config's parameters; {} while Triton is away."""
    from tritonclient.utils import InferenceServerException

    try:
        answer = await triton.get_model_config(model, as_json=True, client_timeout=CONFIG_SECONDS)
    except (InferenceServerException, grpc.RpcError):
        return {}
    parameters = answer["config"].get("parameters", {})
    return {name: int(parameters[name]["string_value"]) for name in WINDOW_SIZES if name in parameters}


async def run_turn(
    triton: InferenceServerClient, model: str, inputs: dict[str, Any], request_id: str, headers: dict[str, str]
) -> Outputs:
    """Send one request, tensors of `request_fields.INPUTS` by name, and yield its responses.

    With ``session_start`` among them the session is started over.

    Closing the generator before its end cancels the turn. Raises TrtstreamError, with the code of the model's error
    where it has one, and ``unavailable`` where Triton is away.
    """

    async def requests() -> AsyncIterator[dict[str, Any]]:
        values, sequence = {**inputs}, {}
        if values.pop("session_start", False):
            sequence = {"sequence_id": values.pop("session_id"), "sequence_start": True}
        yield {"model_name": model, "inputs": request_tensors(values), "request_id": request_id, **sequence}

    call = triton.stream_infer(requests(), headers=headers)
    ended = False
    try:
        async for result, error in call:
            if error is not None:
                code, message = parse_error(" ".join(str(error.message()).split()))
                raise TrtstreamError(message.removeprefix(f"{request_id}: "), code)
            output = TurnOutput(**response_values(result, repr(model)))
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
