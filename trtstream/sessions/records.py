"""A turn as it is kept, and what one commit asks of the log."""

from __future__ import annotations

import json
import secrets
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace

from trtstream.errors import TrtstreamError

SessionKey = str | int
"""A session's name. The number 77 (Triton's ``sequence_id``) and the string "77" are different sessions."""

ID_BYTES = 16

TOKEN_TYPE = "<i4"
"""Of a token id in the log, as numpy names types."""


def token_array(ids: Iterable[int] = ()) -> array[int]:
    """Token ids (int32), which are read from the log, kept and compared without an object for each."""
    return array("i", ids)


def new_turn_id() -> bytes:
    """A random id of 128 bits. Whoever knows it can continue there, so it cannot be guessed."""
    return secrets.token_bytes(ID_BYTES)


def parse_turn_id(name: str, text: str) -> bytes:
    """The id that ``text`` writes in hexadecimal digits. Raises TrtstreamError, which calls it ``name``."""
    try:
        turn_id = bytes.fromhex(text)
    except ValueError:
        turn_id = b""
    if len(turn_id) != ID_BYTES or turn_id.hex() != text:
        raise TrtstreamError(f"{name} is {text!r}; a turn's id has {2 * ID_BYTES} hexadecimal digits (0-9, a-f)")
    return turn_id


@dataclass(frozen=True)
class Recalled:
    """What a turn read again: it was fed copies of earlier ``spans`` at the positions from ``first`` to before ``end``.

    A span is the number of its turn in the conversation, from 1 on, its first position, and the one behind its last.
    """

    first: int
    end: int
    spans: tuple[tuple[int, int, int], ...]

    def to_json(self) -> str:
        return json.dumps([self.first, self.end, *self.spans])

    @classmethod
    def from_json(cls, text: str) -> Recalled:
        first, end, *spans = json.loads(text)
        return cls(first, end, tuple((turn, begin, behind) for turn, begin, behind in spans))


@dataclass(frozen=True)
class TurnRecord:
    """A turn that has ended. It never changes.

    ``parent`` is the turn that it continues (None in a session's first), ``root`` the first of all. The session had
    been fed ``start`` tokens before it, and ``tokens`` are the ids that the turn fed; ``pending`` was sampled last and
    is fed first in the next turn. Its last ``num_output_tokens`` ids, ``pending`` included, are the answer.
    ``fingerprint`` is the checkpoint's (32 bytes), ``request_hash`` the request's. ``prompt`` is the client's text,
    None where it sent token ids. ``created`` is in seconds since 1970. ``tenant`` is whose turn it is.

    ``transcript`` is a hash (32 bytes) of the roles and texts of the conversation, the answer included; None where the
    client did not say who said what. A ``forgotten`` turn is there for those after it alone. ``recalled`` are copies of
    earlier tokens among ``tokens``.
    """

    id: bytes
    parent: bytes | None
    root: bytes
    fingerprint: bytes
    sink_token_length: int
    start: int
    tokens: array[int]
    pending: int
    num_input_tokens: int
    num_output_tokens: int
    system: str | None
    prompt: str | None
    text: str
    finish_reason: str
    request_id: str
    request_hash: bytes
    created: float
    tenant: str = ""
    transcript: bytes | None = None
    forgotten: bool = False
    recalled: Recalled | None = None

    @property
    def position(self) -> int:
        """How many tokens the session has been fed once this turn has ended."""
        return self.start + len(self.tokens)

    @property
    def output_ids(self) -> tuple[int, ...]:
        """The answer's ids."""
        return (*self._fed_answer(), self.pending)

    def answer_alone(self) -> TurnRecord:
        """The turn without what the client sent, for those who remember many: `position` and the answer stay."""
        tokens = self._fed_answer()
        return replace(self, start=self.position - len(tokens), tokens=tokens, system=None, prompt=None)

    def _fed_answer(self) -> array[int]:
        """The answer without its last token, which is ``pending``."""
        return self.tokens[len(self.tokens) - self.num_output_tokens + 1 :]


@dataclass(frozen=True)
class Commit:
    """Add ``turn`` and let the session ``key`` point to it, if it points to ``expected`` (None: there is none) now.

    Without a ``key`` the turn is only added. Without a ``turn`` the session is deleted.
    """

    turn: TurnRecord | None
    key: SessionKey | None
    expected: bytes | None


@dataclass(frozen=True)
class SessionSummary:
    """One line of a list of sessions. ``position`` is in tokens fed, times are in seconds since 1970."""

    key: SessionKey
    turn_id: bytes
    position: int
    updated: float
    expires: float | None


def key_text(key: SessionKey) -> str:
    """A session's key as the database has it: JSON, which keeps 77 and "77" apart."""
    return json.dumps(key, ensure_ascii=False)


def unknown_outcome(key: SessionKey | None) -> TrtstreamError:
    """The error of a turn that may be committed, or not."""
    session = "the turn" if key is None else f"the turn of session {key!r}"
    return TrtstreamError(
        f"{session} may be committed, or not: the session store did not say; send the request again with the same "
        "request id",
        code="unknown",
    )
