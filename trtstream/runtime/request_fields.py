"""The contract of the Triton model: every field of a request and of a response, and every error code, described once.

The client's tensors, the server's parser and responses, config.pbtxt, the checks of numbers and the tables in the docs
come from here. A new sampling option takes an entry in `INPUTS`, a field of `TurnRequest`, and the code that uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Literal

Datatype = Literal["BOOL", "BYTES", "FP32", "INT32", "UINT64"]
"""Triton's names. BYTES is text in UTF-8; config.pbtxt calls it STRING."""

INT32_MAX, UINT64_MAX = (1 << 31) - 1, (1 << 64) - 1
GREATEST: dict[Datatype, float] = {"FP32": (2 - 2**-23) * 2.0**127, "INT32": INT32_MAX, "UINT64": UINT64_MAX}
"""The greatest numbers by datatype."""


@dataclass(frozen=True)
class Limits:
    """Numbers from ``least`` to ``most``; with ``above``, ``least`` itself is outside. ``note`` explains one."""

    least: int
    most: int | None = None
    above: bool = False
    note: str = ""

    def allow(self, value: float) -> bool:
        return (self.least < value if self.above else self.least <= value) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.above:
            text = f"above {self.least}" + ("" if self.most is None else f" and at most {self.most}")
        else:
            text = f"of at least {self.least}" if self.most is None else f"from {self.least} to {self.most}"
        return f"{text} ({self.note})" if self.note else text


@dataclass(frozen=True)
class Field:
    """One tensor, of shape [1, 1], or [1, N] for a ``vector``: the first dimension is Triton's batch, always of one.

    ``attribute`` is where `TurnRequest` or `TurnOutput` holds the same value: the tensor's name, unless given. Numbers
    outside ``limits`` are refused.
    """

    name: str
    datatype: Datatype
    meaning: str
    attribute: str = ""
    vector: bool = False
    limits: Limits | None = None


def _by_name(*fields: Field) -> dict[str, Field]:
    return {field.name: replace(field, attribute=field.attribute or field.name) for field in fields}


INPUTS = _by_name(
    Field("text_input", "BYTES", "The turn, as text.", attribute="text"),
    Field("input_ids", "INT32", "The turn, as token ids.", vector=True),
    Field("messages", "BYTES", "A whole conversation: JSON of objects with `role` and `content`."),
    Field("chat", "BOOL", "`text_input` is a user's message: the checkpoint's chat template is applied."),
    Field("system", "BYTES", "First turn only: a text that is pinned in the session's sinks and never evicted."),
    Field("session_id", "BYTES", "The session that the turn continues; a new one begins it.", attribute="session_key"),
    Field(
        "session_end",
        "BOOL",
        "Forget the session after this turn; needs no text or ids. `messages`: keep no turn.",
    ),
    Field(
        "session_tokens",
        "INT32",
        "The tokens that the session has been fed, in the client's belief (checked).",
        limits=Limits(0),
    ),
    Field("parent_turn", "BYTES", "The `turn_id` that the turn continues (checked); with a new session, a fork."),
    Field("session_rewind", "BOOL", "The session goes back to `parent_turn` if that is not its last turn."),
    Field("tenant", "BYTES", "Whose sessions and turns there are for this one; a gateway says it."),
    Field(
        "recall",
        "INT32",
        "The most tokens of what has left the window that the turn reads again.",
        limits=Limits(0, note="0 is none"),
    ),
    Field("stream", "BOOL", "One response for each token, in place of one for the turn."),
    Field("max_tokens", "INT32", "The greatest number of tokens in the answer.", limits=Limits(1)),
    Field("temperature", "FP32", "Flattens the distribution that is sampled.", limits=Limits(0, note="0 is greedy")),
    Field("top_k", "INT32", "Sample from the k likeliest tokens.", limits=Limits(0, note="0 is off")),
    Field(
        "top_p",
        "FP32",
        "Sample from the likeliest tokens that together have this probability.",
        limits=Limits(0, 1, above=True, note="1 is off"),
    ),
    Field(
        "repetition_penalty",
        "FP32",
        "Makes tokens that the session sees less likely.",
        limits=Limits(0, above=True, note="1 is off"),
    ),
    Field(
        "frequency_penalty",
        "FP32",
        "Makes a token of the answer less likely with each time that it has come.",
        limits=Limits(-2, 2, note="0 is off"),
    ),
    Field(
        "presence_penalty",
        "FP32",
        "Makes the tokens of the answer less likely than others.",
        limits=Limits(-2, 2, note="0 is off"),
    ),
    Field("random_seed", "UINT64", "The same state and seed give the same answer.", limits=Limits(0, UINT64_MAX)),
    Field(
        "seed",
        "UINT64",
        "Another name of `random_seed`; send one of them.",
        attribute="random_seed",
        limits=Limits(0, UINT64_MAX),
    ),
    Field("stop_words", "BYTES", "The answer ends before the first of these; one may be a special token.", vector=True),
    Field("end_id", "INT32", "The token that ends the answer, in place of the checkpoint's.", limits=Limits(0)),
    Field("ignore_eos", "BOOL", "No token ends the answer."),
    Field("return_log_probs", "BOOL", "Fill `output_log_probs` and `output_byte_counts`."),
    Field("return_num_input_tokens", "BOOL", "Changes nothing: `num_input_tokens` is always there."),
    Field("return_num_output_tokens", "BOOL", "`num_output_tokens` counts each response's own tokens."),
)
"""A request's tensors by name. All are optional; those of how its outputs are sent are not part of a `TurnRequest`."""

OUTPUTS = _by_name(
    Field("text_output", "BYTES", "New text.", attribute="text"),
    Field("output_ids", "INT32", "New token ids.", attribute="token_ids", vector=True),
    Field("output_log_probs", "FP32", "Their log-probabilities, if asked for.", attribute="log_probs", vector=True),
    Field("finish_reason", "BYTES", "Empty until the last response: `stop`, `length` or `cancelled`."),
    Field("num_input_tokens", "INT32", "Tokens in the turn, the template's included."),
    Field("num_output_tokens", "INT32", "Tokens in the answer so far; see `return_num_output_tokens`."),
    Field("session_tokens", "INT32", "Tokens that the session has been fed."),
    Field("turn_id", "BYTES", "Names the turn, which is complete with its last response; empty where it is not kept."),
    Field(
        "output_byte_counts",
        "INT32",
        "How many bytes the text has of each token, if log-probabilities are asked for.",
        attribute="byte_counts",
        vector=True,
    ),
    Field(
        "recalled",
        "INT32",
        "What the turn read again, three numbers a span: its turn (from 1 on), its first token, the one after it.",
        vector=True,
    ),
)
"""A response's tensors by name: a `TurnOutput`."""


@dataclass(frozen=True)
class ErrorCode:
    """What went wrong, and the status with which the HTTP front says it."""

    meaning: str
    status: HTTPStatus


ERROR_CODES = {
    "busy": ErrorCode(
        "Too many turns wait, or the session has a turn running: try again later.", HTTPStatus.TOO_MANY_REQUESTS
    ),
    "conflict": ErrorCode(
        "The session is not where `session_tokens` or `parent_turn` says, or was continued elsewhere meanwhile.",
        HTTPStatus.CONFLICT,
    ),
    "draining": ErrorCode("The server is shutting down.", HTTPStatus.SERVICE_UNAVAILABLE),
    "internal": ErrorCode("The engine failed; the server's log says more.", HTTPStatus.INTERNAL_SERVER_ERROR),
    "invalid": ErrorCode("The request itself is wrong.", HTTPStatus.BAD_REQUEST),
    "not_found": ErrorCode(
        "The session or the turn does not exist: it ended, expired or was lost.", HTTPStatus.NOT_FOUND
    ),
    "timeout": ErrorCode("The turn did not end within its `timeout`.", HTTPStatus.GATEWAY_TIMEOUT),
    "too_long": ErrorCode("The prompt is longer than a tensorrt-llm engine takes.", HTTPStatus.BAD_REQUEST),
    "unavailable": ErrorCode("The session store does not answer: try again later.", HTTPStatus.SERVICE_UNAVAILABLE),
    "unknown": ErrorCode(
        "The session store did not say whether it has the turn: send the request again with the same id.",
        HTTPStatus.GATEWAY_TIMEOUT,
    ),
}
"""With which codes, in brackets, the message of an error begins."""


def datatypes(fields: Mapping[str, Field]) -> dict[str, str]:
    """Triton's datatypes by tensor name."""
    return {name: field.datatype for name, field in fields.items()}
