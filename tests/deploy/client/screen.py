"""A command in a terminal: keys go in, and a terminal emulator shows the screen that its user would see."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from types import TracebackType

import pyte

ROWS, COLUMNS = 120, 100
SECONDS = 60


class Screen:
    """``trtstream`` with ``arguments`` in a new terminal; leaving the context kills it."""

    def __init__(self, *arguments: str) -> None:
        self._master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trtstream", *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that a Ctrl-C is a signal
        )
        os.close(terminal)
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._screen.write_process_input = lambda data: os.write(self._master, data.encode())
        self._stream = pyte.ByteStream(self._screen)

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def lines(self) -> list[str]:
        """The lines on the screen, without spaces at their ends and without empty lines at the end."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip().split("\n")

    def read(self, seconds: float = SECONDS) -> bool:
        """Show the next of the command's output; False if there is none for that long."""
        ready, _, _ = select.select([self._master], [], [], seconds)
        if ready:
            self._stream.feed(os.read(self._master, 1 << 12))
        return bool(ready)

    def wait_until(self, holds: Callable[[list[str]], bool]) -> None:
        """Until ``holds`` of the lines that the terminal shows."""
        deadline = time.monotonic() + SECONDS
        while not holds(self.lines()):
            assert self.read(max(0, deadline - time.monotonic())), f"waited in vain in {self.lines()}"

    def wait_for(self, *last: str) -> None:
        """Until these are the last lines; of the first of them, its end is enough."""
        self.wait_until(lambda lines: "\n".join(lines).endswith("\n".join(last)))

    def wait_for_exit(self) -> int:
        """Until the command has ended; returns its exit code."""
        while True:
            try:
                if not os.read(self._master, 1 << 16):
                    break
            except OSError:  # its last process has closed the terminal
                break
        return self.process.wait(SECONDS)
