"""The log-probabilities of an answer's tokens, as OpenAI's protocols have them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trtstream.runtime.requests import TurnOutput

INPUT = "return_log_probs"
"""The model's input that asks for them."""


@dataclass(frozen=True)
class Token:
    """A token's bytes in the answer, its log-probability, and the number of the character in which it begins."""

    text: bytes
    log_prob: float
    offset: int

    @property
    def name(self) -> str:
        """Its text, with U+FFFD in place of incomplete characters."""
        return self.text.decode("utf-8", "replace")

    def as_object(self) -> dict[str, Any]:
        """As chat completions and responses have it."""
        return {"token": self.name, "bytes": list(self.text), "logprob": self.log_prob, "top_logprobs": []}


class TokenReader:
    """An answer's tokens, one after the other. Each comes with the last of its text."""

    def __init__(self) -> None:
        self._text = b""  # of tokens that are to come
        self._log_probs: deque[float] = deque()  # theirs, and of those that have no text
        self._characters = 0  # that have begun

    def take(self, output: TurnOutput) -> list[Token]:
        """The tokens that the turn's next output completes; none where no log-probabilities were asked for."""
        self._log_probs.extend(output.log_probs)
        if not self._log_probs:
            return []
        return self.read(output.text, ((count, self._log_probs.popleft()) for count in output.byte_counts))

    def read(self, text: str, tokens: Iterable[tuple[int, float]]) -> list[Token]:
        """The tokens, each given as its bytes' number and its log-probability, that the next ``text`` completes."""
        self._text += text.encode()
        found = []
        for count, log_prob in tokens:
            own, self._text = self._text[:count], self._text[count:]
            begin = [byte & 0xC0 != 0x80 for byte in own]  # whether a byte is a character's first
            goes_on = begin[:1] == [False]
            found.append(Token(own, log_prob, self._characters - goes_on))
            self._characters += sum(begin)
        return found
