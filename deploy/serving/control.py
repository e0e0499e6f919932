"""The line between ``trtstream serve`` and each of its models: lines of text over a private Unix socket that stays.

A model connects when it has loaded. From then on:

- model to serve, every second: ``alive SECONDS``, how long its current step or call has lasted (0 between them).
- serve to model, once: ``drain SECONDS``. The model refuses new turns, lets the others end within that time, and
  answers ``drained`` or ``cut``. Triton is stopped after that, because it waits for open client streams before it
  finalizes a model, and a client may keep a stream open forever.
- serve to model: ``cancel NAME``, the client of the request that the HTTP front gave this name has left.
- End of file: the model's process died.

A model hangs if its step lasts longer than the hang timeout, or if its lines stop for that long.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trtstream.errors import TrtstreamError

ANSWER_SECONDS = 5.0  # for a model to answer once its time to drain is over
HEARTBEAT_SECONDS = 1.0
CHECK_SECONDS = 0.25

logger = logging.getLogger(__name__)


@dataclass
class _Model:
    """serve's view of one model: when it became busy for the last time, and its answer to ``drain``."""

    connection: socket.socket
    idle_at: float
    unread: bytes = b""
    answer: str = ""

    def read(self) -> bool:
        """Take the lines that have arrived; False at the end of file."""
        try:
            received = self.connection.recv(1 << 16)
        except OSError:
            received = b""
        *lines, self.unread = (self.unread + received).split(b"\n")
        for line in lines:
            word, _, seconds = line.decode(errors="replace").partition(" ")
            if word == "alive":
                self.idle_at = time.monotonic() - float(seconds)
            else:
                self.answer = word
        return bool(received)


class ControlSocket:
    """serve's end. ``on_death()`` and ``on_hang(seconds)`` are called from its thread, once, unless models drain.

    ``hang_timeout`` is in seconds; 0 is none. Hangs count from `watch_hangs` on, as loading takes its time.
    """

    def __init__(
        self, folder: Path, hang_timeout: float, on_death: Callable[[], None], on_hang: Callable[[float], None]
    ) -> None:
        self.path = folder / "control.sock"
        self._hang_timeout = hang_timeout
        self._on_death, self._on_hang = on_death, on_hang
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(str(self.path))
            self.path.chmod(0o600)
        except OSError as error:
            raise TrtstreamError(
                f"cannot make the socket {self.path} ({error}); set TMPDIR to a shorter path"
            ) from None
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._models: list[_Model] = []
        self._changed = threading.Condition()  # guards the models and the flags
        self._watching = self._reported = self._draining = self._closed = False
        self._thread = threading.Thread(target=self._run, name="trtstream-control", daemon=True)
        self._thread.start()

    def __enter__(self) -> ControlSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._thread.join()
        self._selector.close()
        self._listener.close()
        for model in self._models:
            model.connection.close()
        self.path.unlink(missing_ok=True)

    def watch_hangs(self) -> None:
        with self._changed:
            self._watching = self._hang_timeout > 0
            for model in self._models:
                model.idle_at = time.monotonic()

    def drain(self, timeout: float) -> bool:
        """Let all models end their turns within ``timeout`` seconds; False if one had to cut turns short or is dead."""
        with self._changed:
            self._draining = True
            for model in self._models:
                with contextlib.suppress(OSError):
                    model.connection.sendall(b"drain %f\n" % timeout)
            self._changed.wait_for(lambda: all(model.answer for model in self._models), timeout + ANSWER_SECONDS)
            return all(model.answer == "drained" for model in self._models)

    def cancel(self, name: str) -> None:
        """End the turn of a request whose client has left."""
        with self._changed:
            for model in self._models:
                with contextlib.suppress(OSError):
                    model.connection.sendall(b"cancel %s\n" % name.encode())

    def _run(self) -> None:
        while not self._closed:
            ready = self._selector.select(CHECK_SECONDS)
            with self._changed:
                for key, _ in ready:
                    if key.data is None:
                        self._accept()
                    elif not key.data.read():
                        self._lose(key.data)
                self._check_hangs()  # after all lines are read: this process may itself have been stopped for long
                self._changed.notify_all()

    def _accept(self) -> None:
        model = _Model(self._listener.accept()[0], time.monotonic())
        self._models.append(model)
        self._selector.register(model.connection, selectors.EVENT_READ, model)

    def _lose(self, model: _Model) -> None:
        self._selector.unregister(model.connection)
        model.answer = model.answer or "dead"
        if not (self._draining or self._reported):
            self._reported = True
            self._on_death()

    def _check_hangs(self) -> None:
        if not self._watching or self._draining or self._reported:
            return
        seconds = max((time.monotonic() - model.idle_at for model in self._models), default=0.0)
        if seconds > self._hang_timeout + HEARTBEAT_SECONDS:  # a healthy model's last line may be that old
            self._reported = True
            self._on_hang(seconds)


class ControlLine:
    """A model's end. ``busy_seconds()`` is how long the current step or call has lasted; it must not wait.

    ``drain(seconds)`` is called in a thread when serve says so and returns whether all turns ended. ``cancel(name)``
    ends a request's turn; it must not wait either.
    """

    def __init__(
        self,
        path: str,
        busy_seconds: Callable[[], float],
        drain: Callable[[float], bool],
        cancel: Callable[[str], None],
    ) -> None:
        self._busy_seconds, self._drain, self._cancel = busy_seconds, drain, cancel
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(path)
        for target in (self._send_heartbeats, self._obey):
            threading.Thread(target=target, name="trtstream-control", daemon=True).start()

    def _send_heartbeats(self) -> None:
        with contextlib.suppress(OSError):  # serve has died; this process ends with Triton
            while True:
                self._connection.sendall(b"alive %f\n" % self._busy_seconds())
                time.sleep(HEARTBEAT_SECONDS)

    def _obey(self) -> None:
        with contextlib.suppress(OSError):
            for line in self._connection.makefile("rb"):
                command, argument = line.decode().split()
                if command == "cancel":
                    self._cancel(argument)
                else:  # in a thread, because clients leave while turns end
                    threading.Thread(target=self._answer_drain, args=(float(argument),), daemon=True).start()

    def _answer_drain(self, seconds: float) -> None:
        try:
            answer = b"drained\n" if self._drain(seconds) else b"cut\n"
        except Exception:
            logger.exception("the model could not be drained")
            answer = b"cut\n"
        with contextlib.suppress(OSError):
            self._connection.sendall(answer)
