"""Where a request continues: a session's last turn, an earlier one, or none; or whether it has its answer already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import SessionKey, TurnOutput, TurnRequest
from trtstream.sessions.records import Recalled, TurnRecord


class History(Protocol):
    """The turns that can be continued: a database's, or those that this process remembers."""

    def head(self, key: SessionKey) -> TurnRecord | None:
        """The turn that a session points to."""

    def turn(self, turn_id: bytes) -> TurnRecord | None:
        """The turn of this id."""

    def repeated(self, parent: bytes, request_id: str, request_hash: bytes) -> TurnRecord | None:
        """The turn that continues ``parent`` and came from the same request."""


@dataclass(frozen=True)
class Continuation:
    """A turn continues ``parent`` (None: it begins a conversation) in a session that now points to ``head``.

    If the request was sent before, ``answered`` is the turn that it became, and nothing is to be done.
    """

    parent: TurnRecord | None = None
    head: TurnRecord | None = None
    answered: TurnRecord | None = None


def find_continuation(request: TurnRequest, request_hash: bytes, history: History) -> Continuation:
    """``request_hash`` is the request's `TurnRequest.digest`.

    Raises TrtstreamError where the session is not where the request says.
    """
    key = request.key
    head = None if key is None else history.head(key)
    if head is not None and head.tenant != request.tenant:
        raise TrtstreamError(f"session {key!r} belongs to another tenant; choose another name", code="conflict")
    asked = None if request.parent_turn is None else bytes.fromhex(request.parent_turn)
    if request.request_id and (answered := _answered(request, request_hash, history, head, asked)):
        return Continuation(head=head, answered=answered)
    if request.session_start:
        parent = None
    elif asked is None or (head is not None and head.id == asked):
        parent = head
    else:
        if head is not None and not request.session_rewind:
            raise TrtstreamError(
                f"session {key!r} has {head.id.hex()} as its last turn and parent_turn is {request.parent_turn}; send "
                "that one, or session_rewind to go back",
                code="conflict",
            )
        parent = history.turn(asked)
        gone = parent is None or parent.forgotten or parent.tenant != request.tenant
        if parent is None or gone or (head is not None and head.root != parent.root):
            raise TrtstreamError(
                f"turn {request.parent_turn} does not exist, or not in this conversation; it was deleted, or this "
                "server has no session store to find it in",
                code="not_found",
            )
    _check_tokens(request, parent)
    return Continuation(parent, head)


def _answered(
    request: TurnRequest, request_hash: bytes, history: History, head: TurnRecord | None, asked: bytes | None
) -> TurnRecord | None:
    if head is not None and head.request_id == request.request_id and asked in (None, head.parent):
        if head.request_hash != request_hash:
            raise TrtstreamError(
                f"request id {request.request_id!r} was that of the session's last turn, which had another request; "
                "give each request its own",
                code="conflict",
            )
        return head
    return None if asked is None else history.repeated(asked, request.request_id, request_hash)


def _check_tokens(request: TurnRequest, parent: TurnRecord | None) -> None:
    position = 0 if parent is None else parent.position
    if request.session_tokens in (None, position):
        return
    if parent is None:
        raise TrtstreamError(
            f"session {request.session_key!r} does not exist (it ended, expired or was lost) and session_tokens is "
            f"{request.session_tokens}; start a new session",
            code="not_found",
        )
    raise TrtstreamError(
        f"session {request.session_key!r} has seen {position} tokens and session_tokens is {request.session_tokens}; "
        "send the number in its last response",
        code="conflict",
    )


def recalled_numbers(recalled: Recalled | None) -> tuple[int, ...]:
    """What a turn read again, as a `TurnOutput` has it."""
    return () if recalled is None else tuple(number for span in recalled.spans for number in span)


def same_answer(turn: TurnRecord) -> TurnOutput:
    """The answer of a turn as one output, without its log-probabilities, which are not kept."""
    return TurnOutput(
        turn.text,
        turn.output_ids,
        (),
        turn.finish_reason,
        turn.num_input_tokens,
        turn.num_output_tokens,
        turn.position,
        turn.id.hex(),
        recalled=recalled_numbers(turn.recalled),
    )
