"""Token ids to text, one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtstream.runtime.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # in place of bytes that are not a complete character
MAX_INCOMPLETE = 3  # bytes of an incomplete UTF-8 character, each decoded to a replacement character
MAX_PENDING = 32  # tokens; only broken text holds back more


class Detokenizer:
    """The text of a growing token sequence; every call costs the same, however long the text has become.

    New tokens are decoded together with a few earlier ones: a tokenizer in sentencepiece's style drops a text's leading
    space, and a character may take several tokens. ``context`` are the tokens before the first one pushed.
    ``on_complete`` is called with tokens whose text is complete, and their text, some of which may have come before.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: Sequence[int] = (),
        on_complete: Callable[[Sequence[int], str], None] = lambda tokens, text: None,
    ) -> None:
        self._tokenizer = tokenizer
        self._on_complete = on_complete
        self._context = list(context)
        self._context_text = self._decode(self._context)
        self._pending: list[int] = []
        self._emitted = 0  # characters of the pending tokens' text

    def push(self, token: int) -> str:
        """The text that ``token`` completes: empty while a character is incomplete, and for special tokens."""
        self._pending.append(token)
        text = self._decode(self._context + self._pending)[len(self._context_text) :]
        if not text:
            self._on_complete(self._pending, "")
            self._pending.clear()  # a special token: as context it would hide the next one's leading space
            return ""
        complete = len(text)
        while complete > max(len(text) - MAX_INCOMPLETE, self._emitted) and text[complete - 1] == REPLACEMENT:
            complete -= 1
        if complete < len(text) and len(self._pending) < MAX_PENDING:
            new = text[self._emitted : complete]
            self._emitted = complete
            return new
        new = text[self._emitted :]
        self._on_complete(self._pending, text)
        self._context, self._pending, self._emitted = self._pending, [], 0
        self._context_text = self._decode(self._context)
        return new

    def flush(self) -> str:
        """The text held back, once no more tokens come: a character that stays incomplete."""
        text = self._decode(self._context + self._pending)[len(self._context_text) :]
        new = text[self._emitted :]
        self._on_complete(self._pending, text)
        self._pending, self._emitted = [], 0
        return new

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)
