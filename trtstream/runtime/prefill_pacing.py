"""How many tokens of waiting prompts a step feeds, so that running answers get their next tokens in time."""

from __future__ import annotations

import time
from bisect import bisect_right

# A size that was not seen before costs more, as oneDNN and cuBLAS prepare for it. So chunks come in few sizes: from 16
# tokens on each is at most a quarter larger than the one before.
SIZES = [4, 6, 8, 10, 12, 14, *(quarters * 2**power for power in range(2, 18) for quarters in (4, 5, 6, 7))]
FIRST = 16
HEADROOM = 0.7  # of the time that is aimed for, so that nearly all tokens come in time
MAX_GROWTH = 1.25  # a quick step may be chance
MAX_SHRINKAGE = 0.25
DECODE_WEIGHT = 0.1  # of the newest step in the mean time of a decode step


class PrefillPacing:
    """Follows what the last steps took. The time between two decode steps is the inter-token latency (ITL) of running
    answers: that of a decode step, and that of the chunks fed in between.

    A chunk's size is scaled by how its time compares with the time that is left for it: most of ``max_itl_ms``, or of
    twice a decode step's time if that is longer, minus a decode step's time. With a cost of ``a + b * tokens`` this
    settles at the two sizes around the one that takes just that time. Times are measured from one decode step to the
    next, which needs no synchronization with a GPU.
    """

    def __init__(self, max_itl_ms: float, max_num_tokens: int) -> None:
        self._max_itl = max_itl_ms / 1e3
        self._max_num_tokens = max_num_tokens
        self._size = float(FIRST)
        self._decode_seconds = 0.0  # of a decode step alone; 0 until one has been measured
        self._last: float | None = None  # when answers last got tokens
        self._prefilled = 0  # tokens since then

    def fed(self, prefilled: int, is_decoding: bool) -> None:
        """Call when ``prefilled`` tokens of prompts have been fed, and running answers have got their next tokens."""
        self._prefilled += prefilled
        if not is_decoding:
            return
        now, last = time.perf_counter(), self._last
        if last is not None:
            self.follow(now - last, self._prefilled)
        self._last, self._prefilled = now, 0

    def paused(self) -> None:
        """Call when nothing decodes: the next decode step follows no other."""
        self._last, self._prefilled = None, 0

    def follow(self, itl: float, prefilled: int) -> None:
        """Take note of ``itl`` seconds between two decode steps, with ``prefilled`` tokens of prompts in between."""
        if not prefilled:
            weight = DECODE_WEIGHT if self._decode_seconds else 1.0
            self._decode_seconds += weight * (itl - self._decode_seconds)
            return
        left = HEADROOM * max(self._max_itl, 2 * self._decode_seconds) - self._decode_seconds
        took = max(itl - self._decode_seconds, 1e-6)
        growth = MAX_GROWTH if prefilled >= self._chunk() else 1.0  # the end of a prompt says nothing of a larger chunk
        scaled = self._size * min(max(left / took, MAX_SHRINKAGE), growth)
        self._size = min(max(scaled, SIZES[0]), self._max_num_tokens)

    def budget(self, decoding: int) -> int:
        """How many tokens of prompts the next step may feed next to ``decoding`` answers."""
        most = max(1, self._max_num_tokens - decoding)
        return min(self._chunk(), most) if decoding else most

    def _chunk(self) -> int:
        return SIZES[max(bisect_right(SIZES, self._size) - 1, 0)]
