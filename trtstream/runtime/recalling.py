"""What a turn reads again: the spans of earlier turns that suit its text, as tokens between marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtstream.runtime.encoding import control_tokens, encode, text_of
from trtstream.runtime.scheduler_limits import RECALLED
from trtstream.sessions.recall import Found, Question, Vocabulary
from trtstream.sessions.spans import MAX_TOKENS, Cutter

if TYPE_CHECKING:
    from trtstream.runtime.tokenizer import Tokenizer

GAP = " ... "
"""Between two spans."""

LARGEST_SHARE = 4  # a turn reads a quarter of the ring again at most


@dataclass(frozen=True)
class Block:
    """``found`` between the marks of ``template``. Spans are the tokens that they were, so none becomes another."""

    found: Sequence[Found]
    template: str

    def ids(self, tokenizer: Tokenizer, before: str) -> list[int]:
        """Its tokens behind the text ``before``."""
        begin, _, end = self.template.partition(RECALLED)
        ids: list[int] = []
        for number, found in enumerate(self.found):
            ids += encode(tokenizer, GAP if number else begin, text_of(tokenizer, ids[-1]) if ids else before)[0]
            ids += found.span.ids
        return ids + encode(tokenizer, end, text_of(tokenizer, ids[-1]))[0]


class Recalling:
    """Chooses what turns read again, for an engine whose ring has ``ring`` tokens.

    ``template`` is that of `SchedulerLimits`.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ring: int, template: str) -> None:
        self._tokenizer = tokenizer
        self._ring = ring
        self._template = template
        # The marks' tokens depend a little on what is around them.
        self._gap = len(encode(tokenizer, GAP, ".")[0]) + 1
        self._marks = sum(len(encode(tokenizer, part, ".")[0]) + 1 for part in template.split(RECALLED))
        self._limit = ring // LARGEST_SHARE - self._marks
        pieces = [tokenizer.backend_tokenizer.id_to_token(token) for token in range(vocab_size)]
        longest = max(min(MAX_TOKENS, self._limit), 1)
        cutter = Cutter([piece or "" for piece in pieces], control_tokens(tokenizer), longest)
        self.vocabulary = Vocabulary(cutter, self._texts)

    def question(
        self, text: str, position: int, sink_token_length: int, max_tokens: int, before: str = ""
    ) -> Question | None:
        """What to search for a turn with this text, in a session that has been fed ``position`` tokens.

        ``before`` is the text of the turn before, to which this one may refer.
        What is found has at most ``max_tokens`` tokens, marks included, and is at most a quarter of the ring. None if
        that is nothing.
        """
        room = min(max_tokens - self._marks, self._limit)
        if room <= 0 or not text:
            return None
        return Question(text, position, sink_token_length, self._ring, room, self._gap, before)

    def block(self, found: Sequence[Found]) -> Block | None:
        """What was found, between marks; None for nothing."""
        return Block(found, self._template) if found else None

    def _texts(self, spans: Sequence[Sequence[int]]) -> list[str]:
        return list(self._tokenizer.backend_tokenizer.decode_batch([list(ids) for ids in spans]))
