"""A turn that is sent again while nothing of its answer has come: to another server, or to the same one later."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from typing import Any

from trtstream.deploy.contract import routing_headers
from trtstream.deploy.gateway.logprobs import INPUT
from trtstream.deploy.gateway.triton import TritonService
from trtstream.deploy.gateway.turns import Outputs, fed_before, run_turn
from trtstream.deploy.http_front.readiness import Readiness
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnOutput

PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0)  # seconds before each sending but the first
LOST = ("draining", "unavailable", "unknown")
"""Codes of errors after which a request may be sent again."""
LEFT_BEHIND = ("busy", "conflict")
"""What a sending that was lost may cause for a moment: its turn ends, or is kept, only when its server notices."""


async def run_until_answered(
    triton: TritonService, model: str, inputs: dict[str, Any], readiness: Readiness
) -> Outputs:
    """`run_turn`, sent again while servers drain or die and nothing has been yielded.

    Each sending has the same id: a turn that was made before its connection was lost is returned, and none is made
    twice. A turn that its server cut short for the lost connection is taken back and asked again; so is one that was
    made, where it was asked for its log-probabilities, which are not kept.
    """
    request_id, headers = secrets.token_hex(16), routing_headers(_conversation(inputs))
    codes: tuple[str, ...] = LOST
    for pause in (*PAUSES, None):
        try:
            async with contextlib.aclosing(run_turn(triton, model, inputs, request_id, headers)) as outputs:
                first = await anext(outputs)
                if first.finish_reason != "cancelled" and not _lacks_log_probs(inputs, first):
                    yield first
                    codes = ()
                    async for output in outputs:
                        yield output
                    return
            inputs, request_id = _taken_back(inputs, first), secrets.token_hex(16)
        except TrtstreamError as error:
            if pause is None or error.code not in codes or not readiness.takes_turns:
                raise
            codes = (*LOST, *LEFT_BEHIND)
        await asyncio.sleep(pause or 0.0)
    raise TrtstreamError("the connection to the servers is lost again and again; ask again", "unavailable")


def _lacks_log_probs(inputs: dict[str, Any], first: TurnOutput) -> bool:
    return bool(inputs.get(INPUT) and first.token_ids and not first.log_probs)


def _taken_back(inputs: dict[str, Any], answer: TurnOutput) -> dict[str, Any]:
    """The request in place of the turn with this ``answer``: what that has added to a session goes.

    Raises TrtstreamError for a later turn of a conversation that goes by its name: the turn before it is not known.
    """
    if inputs.get("parent_turn"):
        return {**inputs, "session_rewind": True}
    if not inputs.get("session_id"):
        return inputs
    if fed_before(answer):
        message = "the connection was lost in the middle of a turn; look at the conversation's items, and ask again"
        raise TrtstreamError(message, "unavailable")
    return {**inputs, "session_start": True}


def _conversation(inputs: dict[str, Any]) -> str:
    """What a conversation's turns have in common: the session, or all messages up to the first of the user."""
    if inputs.get("session_id"):
        return str(inputs["session_id"])
    messages = json.loads(inputs.get("messages") or "[]")
    roles = [message["role"] for message in messages]
    opening = messages[: roles.index("user") + 1] if "user" in roles else messages
    return json.dumps([inputs["tenant"], opening]) if opening else ""
