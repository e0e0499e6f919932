"""Ends a model's process when its Triton is gone, whoever started that Triton."""

from __future__ import annotations

import os
import threading
import time

CHECK_SECONDS = 0.5
EXIT_SECONDS = 3.0  # for the process to notice by itself


def exit_with_parent() -> None:
    """Watch this process's parent from a thread, and exit when it has died.

    The Python backend's own watch calls exit(), which waits for threads that compute and may never return. And
    PR_SET_PDEATHSIG does not suit: it would fire when the thread of Triton's that loaded the model ends.
    """
    parent = os.getppid()
    threading.Thread(target=_watch, args=(parent,), name="trtstream-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_SECONDS)
    time.sleep(EXIT_SECONDS)
    os._exit(1)
