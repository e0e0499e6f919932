"""How ``trtstream serve`` stops a model before it stops Triton: one line each way over a private Unix socket.

Triton waits for open client streams before it finalizes a model, and a client may keep a stream open forever. So serve
says ``drain SECONDS``, each model lets its turns end and answers ``drained`` or ``cut``, and then Triton is stopped.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from trtstream.errors import TrtstreamError

ANSWER_SECONDS = 5.0  # for a model to answer once its time to drain is over
ORPHAN_SECONDS = 3.0  # for a model's process to notice by itself that Triton has died

logger = logging.getLogger(__name__)


class DrainSocket:
    """serve's end. Models connect when they load and wait in the listener's backlog until then."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "drain.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(str(self.path))
        except OSError as error:
            raise TrtstreamError(
                f"cannot make the socket {self.path} ({error}); set TMPDIR to a shorter path"
            ) from None
        self._listener.listen(64)

    def __enter__(self) -> DrainSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def drain(self, timeout: float) -> bool:
        """Let all models end their turns within ``timeout`` seconds; False if one had to cut turns short or is dead."""
        self._listener.setblocking(False)
        models: list[socket.socket] = []
        try:
            while True:
                models.append(self._listener.accept()[0])
        except BlockingIOError:
            pass
        deadline = time.monotonic() + timeout + ANSWER_SECONDS
        clean = True
        for model in models:
            model.setblocking(True)
            try:
                model.sendall(b"drain %f\n" % timeout)
            except OSError:
                clean = False
        for model in models:
            with model:
                model.settimeout(max(deadline - time.monotonic(), 0.1))
                try:
                    clean &= model.makefile("rb").readline() == b"drained\n"
                except OSError:
                    clean = False
        return clean


def follow_serve(path: str, drain: Callable[[float], bool]) -> None:
    """A model's end: call ``drain(seconds)`` in a thread when serve says so, and die when serve has died."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    threading.Thread(target=_follow, args=(connection, drain), name="trtstream-drain", daemon=True).start()


def _follow(connection: socket.socket, drain: Callable[[float], bool]) -> None:
    with connection:
        try:
            command = connection.makefile("rb").readline().split()
        except OSError:
            command = []
        if not command:  # serve was killed, and Triton with it
            time.sleep(ORPHAN_SECONDS)
            os._exit(1)
        try:
            answer = b"drained\n" if drain(float(command[1])) else b"cut\n"
        except Exception:
            logger.exception("the model could not be drained")
            answer = b"cut\n"
        connection.sendall(answer)
