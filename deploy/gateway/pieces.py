"""The pieces in which an answer came, which are kept beside its text so that its events can be sent again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtstream.deploy.gateway.logprobs import Token, TokenReader


@dataclass(frozen=True)
class Piece:
    """New text, and the tokens that it completes where their log-probabilities were asked for. Not both are empty."""

    text: str
    tokens: Sequence[Token] = ()


def to_keep(pieces: Sequence[Piece]) -> dict[str, Any]:
    """What `cut` makes the pieces from, as JSON."""
    kept: dict[str, Any] = {"pieces": [len(piece.text) for piece in pieces]}
    if any(piece.tokens for piece in pieces):
        kept["tokens"] = [[(len(token.text), token.log_prob) for token in piece.tokens] for piece in pieces]
    return kept


def cut(text: str, kept: dict[str, Any]) -> list[Piece]:
    """``text`` in its pieces; in one where ``kept`` has others."""
    lengths = kept.get("pieces", [])
    if sum(lengths) != len(text):
        return [Piece(text)] if text else []
    reader, start, pieces = TokenReader(), 0, []
    for length, tokens in zip(lengths, kept.get("tokens") or [[]] * len(lengths), strict=True):
        piece = text[start : start + length]
        pieces.append(Piece(piece, reader.read(piece, tokens)))
        start += length
    return pieces
