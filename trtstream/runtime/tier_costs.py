"""What it takes to have a session's cache again: reading a snapshot, or feeding the session's tokens once more."""

from __future__ import annotations

WEIGHT = 0.25  # of the newest measurement in the mean
LEAST_TOKENS, LEAST_BYTES = 16, 1 << 16  # less says more of what a call costs than of its rate


class TierCosts:
    """Follows what reading and feeding take on this machine, under its load.

    The two rates are in seconds for a byte and a token. They begin as a plain disk's and a small model's on a CPU.
    """

    def __init__(self) -> None:
        self._byte_seconds = 1e-9
        self._token_seconds = 1e-3

    def was_read(self, nbytes: int, seconds: float) -> None:
        """Take note that reading and checking a snapshot of ``nbytes`` took ``seconds``."""
        if nbytes >= LEAST_BYTES:
            self._byte_seconds += WEIGHT * (seconds / nbytes - self._byte_seconds)

    def was_fed(self, tokens: int, seconds: float) -> None:
        """Take note that a prompt of ``tokens`` took ``seconds``, the steps of others in between included."""
        if tokens >= LEAST_TOKENS:
            self._token_seconds += WEIGHT * (seconds / tokens - self._token_seconds)

    def reading(self, nbytes: int) -> float:
        """Seconds that reading a snapshot of ``nbytes`` will take."""
        return nbytes * self._byte_seconds

    def feeding(self, tokens: int) -> float:
        """Seconds that feeding ``tokens`` will take."""
        return tokens * self._token_seconds
