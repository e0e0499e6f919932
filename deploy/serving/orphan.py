"""Ends a model's process when its Triton is gone, whoever started that Triton."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
ASK_SECONDS = 0.05  # until the kernel watches
CHECK_SECONDS = 0.5
EXIT_SECONDS = 3.0  # for the process to notice by itself


def exit_with_parent() -> None:
    """Watch this process's parent from a thread, and end when it has died.

    The Python backend's own watch calls exit(), which waits for threads that compute and may never return. And some of
    its calls wait for Triton with Python's lock held: if Triton dies meanwhile, no thread of Python runs again. So the
    kernel kills this process, as soon as it can be asked to.
    """
    parent = os.getppid()
    threading.Thread(target=_watch, args=(parent,), name="trtstream-parent", daemon=True).start()


def _watch(parent: int) -> None:
    kernel_watches = False
    while os.getppid() == parent:
        if not kernel_watches and _belongs_to_main_thread(parent):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # lasts as long as this thread
            kernel_watches = True
        time.sleep(CHECK_SECONDS if kernel_watches else ASK_SECONDS)
    time.sleep(EXIT_SECONDS)
    os._exit(1)


def _belongs_to_main_thread(parent: int) -> bool:
    """Whether this process is a child of its parent's main thread.

    It is so once the thread of Triton's that loaded the model has ended. Until then, the signal would come at that
    thread's end.
    """
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:  # a kernel without this file
        return False
    return str(os.getpid()) in children
