"""Ends a model's process when its Triton is gone, whoever started that Triton."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

CHECK_SECONDS = 0.5
EXIT_SECONDS = 3.0  # for the process to notice by itself


def exit_with_parent() -> None:
    """Watch this process's parent from a thread, and exit when it has died.

    The Python backend's own watch calls exit(), which waits for threads that compute and may never return. And
    PR_SET_PDEATHSIG does not suit: it would fire when the thread of Triton's that loaded the model ends.
    """
    parent = os.getppid()
    threading.Thread(target=_watch, args=(parent,), name="trtstream-parent", daemon=True).start()


@contextmanager
def exit_unless_done_in(seconds: float) -> Iterator[None]:
    """For calls that wait for Triton and keep Python's lock: if it dies meanwhile, no thread can end this process.

    SIGALRM can, as nothing handles it. One block at a time.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_SECONDS)
    time.sleep(EXIT_SECONDS)
    os._exit(1)
