"""A text's token ids in its place: at the start of a conversation, or behind what a session holds already.

Tokenizers in sentencepiece's style put a space in front of a text, some of them behind special tokens too, so that the
tokens of a text depend on what precedes it. A text is therefore encoded together with the end of what precedes it.
"""

from __future__ import annotations

from itertools import accumulate, pairwise, takewhile
from typing import TYPE_CHECKING

from trtstream.errors import TrtstreamError

if TYPE_CHECKING:
    from tokenizers import Encoding

    from trtstream.runtime.tokenizer import Tokenizer

NEUTRAL = ("\n", "a", "\ufffd")
"""Contexts that texts do not merge with: words not with the newline, spaces not with the letter, none with the last."""

CUT = "\ufdd0"
"""Where a text is cut. Unicode reserves this code for such use inside a program, so texts do without it."""

PLACE = "\ufdd1"
"""Where other tokens belong in a text; reserved likewise."""


def encode(tokenizer: Tokenizer, text: str, before: str = "") -> tuple[list[int], list[int]]:
    """Return (the ids of ``text`` behind the text ``before``, the character of ``text`` that each begins with).

    Nothing merges across the border: the tokens before it have been fed. Where the tokenizer would merge, the text is
    encoded behind something that it does not merge with. Without ``before``, ``text`` begins a conversation.
    """
    for context in (before, *NEUTRAL) if before else ():
        head = _encoding(tokenizer, context).ids
        encoding = _encoding(tokenizer, context + text)
        if encoding.ids[: len(head)] == head:
            return encoding.ids[len(head) :], [start - len(context) for start in _starts(encoding)[len(head) :]]
    encoding = _encoding(tokenizer, text)
    return encoding.ids, _starts(encoding)


def encode_first(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """As `encode`, for a conversation's first text: begun by what the tokenizer puts in front of texts (BOS), once.

    What it puts behind them (an EOS) is left out, because the text goes on.
    """
    probe = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True)
    added = zip(probe.ids, probe.special_tokens_mask, strict=True)
    prefix = [token for token, _ in takewhile(lambda pair: pair[1], added)]
    ids, starts = encode(tokenizer, text)
    if ids[: len(prefix)] == prefix:
        return ids, starts
    return prefix + ids, [0] * len(prefix) + starts


def text_of(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token, to encode others behind it; never empty."""
    added = tokenizer.added_tokens_decoder.get(token)
    if added is not None:
        return added.content
    return tokenizer.decode([token]) or NEUTRAL[1]


def shield(tokenizer: Tokenizer, text: str) -> str:
    """``text`` for a place in a chat template, with a `CUT` inside each control token that somebody wrote in it.

    So `encode_shielded` gives it as the text that it is, and no message ends its own turn. Raises TrtstreamError for a
    control token that cannot be cut.
    """
    text = text.replace(CUT, "").replace(PLACE, "")
    control = control_tokens(tokenizer)
    encoding = _encoding(tokenizer, text)
    if control.keys().isdisjoint(encoding.ids):
        return text
    cuts = []
    for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if token in control:  # it may have taken in the space before it
            cuts.append(end - len(text[start:end].lstrip()) + 1)
    pieces = [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]
    for piece in tokenizer.backend_tokenizer.encode_batch(pieces, add_special_tokens=False):
        if left := next((token for token in piece.ids if token in control), None):
            raise TrtstreamError(f"the text has the control token {control[left]!r}; leave it out, or leave chat out")
    return CUT.join(pieces)


def encode_shielded(tokenizer: Tokenizer, text: str, before: str = "") -> tuple[list[int], list[int]]:
    """As `encode`, for a text with parts out of `shield`; nothing merges across a `CUT`."""
    pieces = text.split(CUT)
    ids, starts = encode(tokenizer, pieces[0], before)
    positions = accumulate(len(piece) + len(CUT) for piece in pieces)
    for piece, position in zip(pieces[1:], positions, strict=False):
        more, more_starts = encode(tokenizer, piece, NEUTRAL[0])
        ids += more
        starts += [position + start for start in more_starts]
    return ids, starts


def _encoding(tokenizer: Tokenizer, text: str) -> Encoding:
    # Not with the tokenizer's __call__: that sets options on the shared tokenizer, which other threads are using. And a
    # batch of one, because other Python threads run only during batches: a text of 1 MB takes more than a second.
    return tokenizer.backend_tokenizer.encode_batch([text], add_special_tokens=False)[0]


def _starts(encoding: Encoding) -> list[int]:
    # Some tokenizers leave the leading spaces out of offsets: a token of spaces alone has none then, and ends there.
    return [min(start, end - 1) for start, end in encoding.offsets]


def control_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """Special tokens, and other added ones that the chat template writes; not the one for what is unknown."""
    template = str(tokenizer.chat_template)
    return {
        token: added.content
        for token, added in tokenizer.added_tokens_decoder.items()
        if token != tokenizer.unk_token_id and added.content.strip() and (added.special or added.content in template)
    }
