"""How many bytes of an answer's text, in UTF-8, each of its tokens has."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trtstream.runtime.detokenizer import REPLACEMENT

if TYPE_CHECKING:
    from trtstream.runtime.tokenizer import Tokenizer

ONE_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a sentencepiece tokenizer's name for a byte


class ByteCounts:
    """The counts of an answer, token by token. A token's count comes with the last of its bytes.

    All counts of an answer add up to the bytes of its text, whatever becomes of broken characters and stop words. A
    token that has no text, as a special one, has 0; tokens that come after the text has ended have no count.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._counts: deque[int] = deque()  # of tokens whose text is not out yet
        self._out = 0  # bytes of these tokens that are out already

    def add(self, tokens: Sequence[int], text: str) -> None:
        """The next ``tokens`` and the ``text`` that they are together, of which some may be out already."""
        if tokens:
            self._counts.extend(self._split(tokens, text))

    def take(self, text: str, ended: bool) -> tuple[int, ...]:
        """The counts that come with the next ``text`` that is out; with ``ended``, it is the last."""
        self._out += _size(text)
        counts = []
        while self._counts and self._counts[0] <= self._out:
            self._out -= self._counts[0]
            counts.append(self._counts.popleft())
        if ended and self._out:  # a stop word begins in this token
            counts.append(self._out)
        return tuple(counts)

    def _split(self, tokens: Sequence[int], text: str) -> list[int]:
        """A count for each token. A character of several tokens has some bytes of each; a broken one is the last's."""
        size = _size(text)
        if len(tokens) > 1 and REPLACEMENT not in text:
            names = [self._tokenizer.backend_tokenizer.id_to_token(token) or "" for token in tokens]
            # In a byte-level vocabulary each character of a token's name is one byte.
            own = [1 if ONE_BYTE.fullmatch(name) else len(name) for name in names]
            if sum(own) == size:
                return own
        return [0] * (len(tokens) - 1) + [size]


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
