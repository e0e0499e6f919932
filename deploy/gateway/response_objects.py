"""OpenAI's response objects, and the items in them, from turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai.types.responses import Response, ResponseInputMessageItem, ResponseOutputMessage

from trtstream.deploy.gateway.errors import ApiError
from trtstream.deploy.gateway.pieces import Piece
from trtstream.deploy.gateway.turns import fed_before, read_again
from trtstream.runtime.continuation import recalled_numbers
from trtstream.runtime.requests import TurnOutput
from trtstream.sessions.records import TurnRecord

PREFIX = "resp_"
ITEM = "msg_"
QUESTION = "_in"
"""The end of the id of an item that is a turn's input."""


def finished(
    begun: dict[str, Any],
    pieces: Sequence[Piece],
    last: TurnOutput | None,
    completed: float,
    error: ApiError | None = None,
    cancelled: bool = False,
) -> Response:
    """The response that ``begun`` (its object while it is in progress) has become, by the turn's ``last`` output.

    ``completed`` is in seconds since 1970. Without a last output the response has failed or was cancelled.
    """
    reason = "cancelled" if last is None or cancelled else last.finish_reason
    status = {"length": "incomplete", "cancelled": "cancelled"}.get(reason, "completed")
    status = status if error is None else "failed"
    values = {
        **begun,
        "status": status,
        "completed_at": int(completed),
        "error": None if error is None else {"code": "server_error", "message": str(error)},
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": [] if status == "failed" else [message(begun["id"], pieces, status)],
        "usage": None if last is None else _usage(last),
        **({} if last is None else read_again(last.recalled)),
    }
    return Response.model_validate(values)


def message(
    response_id: str, pieces: Sequence[Piece] | None = None, status: str = "in_progress"
) -> ResponseOutputMessage:
    """A response's answer; without pieces, before it has any."""
    content = [] if pieces is None else [_output_text(pieces)]
    values = {
        "id": ITEM + response_id.removeprefix(PREFIX),
        "type": "message",
        "role": "assistant",
        "status": "incomplete" if status == "cancelled" else status,
        "content": content,
    }
    return ResponseOutputMessage.model_validate(values)


def question(turn: TurnRecord) -> ResponseInputMessageItem:
    """What the client said in a turn; nothing where it sent token ids.

    ``token_range``, which OpenAI does not have, is where its tokens are in the conversation: [first, end).
    """
    values = {
        "id": ITEM + turn.id.hex() + QUESTION,
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": turn.prompt or ""}],
        "token_range": [turn.start + (turn.parent is not None), _answer_start(turn)],
        **read_again(recalled_numbers(turn.recalled)),
    }
    return ResponseInputMessageItem.model_validate(values)


def answer(turn: TurnRecord) -> ResponseOutputMessage:
    """What the model said in a turn."""
    status = "completed" if turn.finish_reason == "stop" else "incomplete"
    item = message(turn.id.hex(), [Piece(turn.text)], status)
    return item.model_copy(update={"token_range": [_answer_start(turn), turn.position + 1]})


def _output_text(pieces: Sequence[Piece]) -> dict[str, Any]:
    logprobs = [token.as_object() for piece in pieces for token in piece.tokens]
    text = "".join(piece.text for piece in pieces)
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _answer_start(turn: TurnRecord) -> int:
    """Where a turn's answer begins in the conversation, whose last token is not fed yet."""
    return turn.position + 1 - turn.num_output_tokens


def _usage(last: TurnOutput) -> dict[str, Any]:
    """Tokens of the whole conversation; cached are those that it had been fed before this turn.

    The conversation has one token more than it was fed: the last sampled one, which the next turn feeds first.
    """
    total = last.session_tokens + 1
    return {
        "input_tokens": total - last.num_output_tokens,
        "input_tokens_details": {"cached_tokens": fed_before(last), "cache_write_tokens": 0},
        "output_tokens": last.num_output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": total,
    }
