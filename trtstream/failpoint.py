"""Places where a test has a server die, to see what a kill just there leaves behind.

``TRTSTREAM_FAILPOINT=NAME:COUNT`` kills the process when it comes to the place NAME for the COUNTth time. Nothing but
tests sets that variable, `serve` says so when it is set, and without it a place costs one comparison of strings.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "TRTSTREAM_FAILPOINT"
PLACES = (
    "before-commit",
    "in-commit",
    "after-commit",
    "before-response",
    "snapshot-write",
    "snapshot-rename",
    "drain",
)

_place, _, _count = os.environ.get(VARIABLE, "").partition(":")
_left = int(_count or 1)


def reach(place: str) -> None:
    """Die here if a test has asked for it."""
    global _left
    if place == _place:
        _left -= 1
        if _left == 0:
            os.write(2, f"killed at the failpoint {place}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
