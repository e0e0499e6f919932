"""Where a conversation's tokens are cut into spans: along messages and sentences, so that each says one thing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

MAX_TOKENS = 96
MIN_TOKENS = 8  # a shorter sentence stays with the next one
SENTENCE_ENDS = (".", "!", "?")
ENDS_WITHOUT_SPACE = ("\u3002", "\uff01", "\uff1f", "\n\n")  # Chinese and Japanese ones, and a paragraph
CLOSING = "\"')]}*\u201d\u2019\u00bb"
SPACES = {"Ġ": " ", "▁": " ", "Ċ": "\n", "<0x0A>": "\n"}
"""Tokenizers' signs for white space."""


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of a conversation: ``ids``, of which the first was fed at the position ``first``."""

    first: int
    ids: tuple[int, ...]

    @property
    def end(self) -> int:
        """The position behind the last token."""
        return self.first + len(self.ids)


class Cutter:
    """Cuts token ids into spans. ``pieces`` are the vocabulary's tokens, as the tokenizer writes them, by id.

    No span has one of the ``control`` ids, and none is longer than ``max_tokens``.
    """

    def __init__(self, pieces: Sequence[str], control: Collection[int], max_tokens: int = MAX_TOKENS) -> None:
        self.max_tokens = max_tokens
        texts = [_text(piece) for piece in pieces]
        self._is_control = np.zeros(len(texts), bool)
        self._is_control[[*control]] = True
        self._begins_with_space = np.array([text[:1].isspace() for text in texts], bool)
        self._may_end = np.array([text.rstrip().rstrip(CLOSING).endswith(SENTENCE_ENDS) for text in texts], bool)
        self._breaks = np.array([text.endswith("\n") for text in texts], bool)
        self._is_upper = np.array([text[:1].isupper() for text in texts], bool)
        self._ends = np.array([text.rstrip(" ").endswith(ENDS_WITHOUT_SPACE) for text in texts], bool)

    def cut(self, first: int, ids: Sequence[int]) -> Iterator[Span]:
        """The spans of ``ids``, which were fed from the position ``first`` on."""
        if not len(ids):
            return
        tokens = np.asarray(ids)
        is_control = self._is_control[tokens]
        ends = self._ends[tokens]
        ends[:-1] |= self._may_end[tokens[:-1]] & self._begins_with_space[tokens[1:]]
        # A new line of a list, verses or a dialogue.
        ends[:-1] |= self._breaks[tokens[:-1]] & self._is_upper[tokens[1:]]
        ends[:-1] |= is_control[1:]
        ends[-1] = True
        begin = 0
        for end in (np.flatnonzero(ends | is_control) + 1).tolist():
            if is_control[end - 1]:
                end, after = end - 1, end
            elif end - begin < MIN_TOKENS and end < len(tokens) and not is_control[end]:
                continue
            else:
                after = end
            parts = -(-(end - begin) // self.max_tokens)
            for part in np.array_split(tokens[begin:end], parts) if parts else ():
                yield Span(first + begin, tuple(part.tolist()))
                begin += len(part)
            begin = after


def _text(piece: str) -> str:
    for sign, space in SPACES.items():
        piece = piece.replace(sign, space)
    return piece
