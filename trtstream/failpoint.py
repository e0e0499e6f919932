"""What tests and benchmarks have a server suffer: its death at a certain place, and a slow device.

``TRTSTREAM_FAILPOINT=NAME:COUNT`` kills the process when it comes to the place NAME for the COUNTth time. Nothing but
tests sets that variable, `serve` says so when it is set, and without it a place costs one comparison of strings.

``TRTSTREAM_STEP_SECONDS=SECONDS`` lets every step wait so long before it is computed, as for a device of the server's
own: several servers on one machine then add up as several machines do, as long as its processors suffice.
"""

from __future__ import annotations

import os
import signal
import time

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

STEP_VARIABLE = "TRTSTREAM_STEP_SECONDS"

_place, _, _count = os.environ.get(VARIABLE, "").partition(":")
_left = int(_count or 1)
_step_seconds = float(os.environ.get(STEP_VARIABLE) or 0.0)


def reach(place: str) -> None:
    """Die here if a test has asked for it."""
    global _left
    if place == _place:
        _left -= 1
        if _left == 0:
            os.write(2, f"killed at the failpoint {place}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)


def wait_for_device() -> None:
    """Wait as long as a benchmark's device takes for a step."""
    if _step_seconds:
        time.sleep(_step_seconds)
