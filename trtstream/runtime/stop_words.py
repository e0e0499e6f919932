"""Stop words: a turn's text ends before the first of them, or at the special token that one of them is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtstream.runtime.tokenizer import Tokenizer


def stop_ids(words: Sequence[str], tokenizer: Tokenizer | None) -> frozenset[int]:
    """The ids of those ``words`` that are special tokens. Such tokens have no text in which to find a word."""
    if not words or tokenizer is None:
        return frozenset()
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(token for token, word in added if word.special and word.content in words)


class StopWords:
    """Passes text on, but holds it back while it may be the beginning of a stop word."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return (the text that is certain, whether a stop word was found); text after a stop word is dropped."""
        text = self._held + text
        starts = [start for word in self._words if (start := text.find(word)) >= 0]
        if starts:
            self._held = ""
            return text[: min(starts)], True
        certain = len(text) - max((_overlap(text, word) for word in self._words), default=0)
        self._held = text[certain:]
        return text[:certain], False

    def flush(self) -> str:
        """Return the text held back: no more text comes, so no stop word began in it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``word``."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0)
