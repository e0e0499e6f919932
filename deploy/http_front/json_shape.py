"""How deep and how wide a JSON text is, without parsing it: for any bytes, in one pass and constant memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

QUOTE, COLON = ord('"'), ord(":")
MARKS = b'"[]{}:'
OTHERS = bytes(set(range(256)) - set(MARKS))
CHUNK_BYTES = 1 << 16
STEPS = np.zeros(256, np.int8)
STEPS[list(b"[{")], STEPS[list(b"]}")] = 1, -1


@dataclass
class JsonShape:
    """The deepest nesting of arrays and objects, and how many members all objects have together, so far.

    Counts brackets and colons outside of strings. Behind an error in the JSON the counts mean nothing, but a parser
    does not get there.
    """

    depth: int = 0
    members: int = 0
    _level: int = 0
    _in_string: bool = False
    _escaped: bool = False  # by a backslash at the end of the last chunk

    def feed(self, text: bytes) -> None:
        """Take the next bytes of the text."""
        for start in range(0, len(text), CHUNK_BYTES):
            self._feed(text[start : start + CHUNK_BYTES])

    def _feed(self, chunk: bytes) -> None:
        chunk = chunk[1:] if self._escaped else chunk
        chunk = chunk.replace(b"\\\\", b"")  # pairs, from the left: what is left of a run escapes what follows
        self._escaped = chunk.endswith(b"\\")
        marks = np.frombuffer(chunk.replace(b'\\"', b"").translate(None, OTHERS), np.uint8)
        inside = np.logical_xor.accumulate(np.append(self._in_string, marks == QUOTE))
        self._in_string = bool(inside[-1])
        outside = ~inside[1:]
        levels = self._level + np.cumsum(STEPS[marks] * outside, dtype=np.int64)
        if levels.size:
            self.depth = max(self.depth, int(levels.max()))
            self._level = int(levels[-1])
        self.members += int(np.count_nonzero((marks == COLON) & outside))
