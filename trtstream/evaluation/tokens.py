"""A text's token ids, in a file: texts of any length are read, tokenized and scored in constant memory."""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from trtstream.errors import TrtstreamError

if TYPE_CHECKING:
    from trtstream.runtime.tokenizer import Tokenizer

BLOCK = 1 << 18  # characters of a read
MARGIN = 1 << 11  # characters around a cut: more than a tokenizer looks back or ahead
NO_LIMIT = 1 << 62


class TokenFile:
    """Token ids on disk (int32). Read in slices and not mapped, because mapped files count as a process's memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = path.stat().st_size // 4

    def read(self, begin: int, end: int) -> np.ndarray:
        """The ids [begin, end)."""
        return np.fromfile(self._path, dtype="<i4", count=end - begin, offset=4 * begin)


def tokenize(text: Path, tokenizer: Tokenizer, vocab_size: int, output: Path, limit: int | None = None) -> TokenFile:
    """Write the ids of ``text`` (UTF-8, no BOS added) to ``output``, at most ``limit`` of them.

    Raises TrtstreamError for a file that is not a text or is empty, and for a tokenizer of another checkpoint.
    """
    written = 0
    limit = NO_LIMIT if limit is None else limit
    try:
        # newline="" keeps carriage returns.
        with text.open(encoding="utf-8-sig", newline="") as source, output.open("wb") as target:
            for block in _token_blocks(source, tokenizer):
                ids = np.array(block[: limit - written], dtype="<i4")
                if len(ids) and ids.max() >= vocab_size:
                    raise TrtstreamError(
                        f"the tokenizer gives the id {ids.max()}, and the model's vocabulary ends at {vocab_size - 1}: "
                        "it belongs to another checkpoint"
                    )
                target.write(ids.tobytes())
                written += len(ids)
                if written == limit:
                    break
    except UnicodeDecodeError:
        raise TrtstreamError(f"{text} is not UTF-8 text; give a plain text file") from None
    except OSError as error:
        raise TrtstreamError(f"{error.filename or text}: {error.strerror}") from error
    if written < 2:
        raise TrtstreamError(f"{text} has no text to evaluate: {written} tokens, and the first predicted is the second")
    return TokenFile(output)


@contextmanager
def temporary_tokens(text: Path, tokenizer: Tokenizer, vocab_size: int, limit: int | None) -> Iterator[TokenFile]:
    """The ids as `tokenize` gives them, in a temporary file that is removed when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        yield tokenize(text, tokenizer, vocab_size, Path(folder) / "ids", limit)


def _token_blocks(source: TextIO, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The ids of a text, block by block, the same as those of the whole text at once.

    Each block is tokenized with some text around it. The text before a block is dropped only where the rest, tokenized
    alone, gives the same tokens from there on.
    """
    text, start = "", 0  # the ids of text[start:] are still to come
    while more := source.read(BLOCK):
        if "\0" in more:
            raise TrtstreamError(f"{source.name} has NUL characters: it is not a text; give a plain text file")
        text += more
        ids, starts = _encode(tokenizer, text)
        first, end = bisect_left(starts, start), bisect_left(starts, len(text) - MARGIN)
        if end <= first:
            continue
        yield ids[first:end]
        start = starts[end]
        loose = max(len(text) - 2 * MARGIN, 0)
        rest_ids, rest_starts = _encode(tokenizer, text[loose:])
        if rest_ids[bisect_left(rest_starts, start - loose) :] == ids[end:]:
            text, start = text[loose:], start - loose
    ids, starts = _encode(tokenizer, text)
    yield ids[bisect_left(starts, start) :]


def _encode(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """Ids, and the character at which each begins."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, [begin for begin, _ in encoding.offsets]
