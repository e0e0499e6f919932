"""The progress bar of a terminal."""

from __future__ import annotations

import os
import pty
import threading

import pytest

from trtstream.progress import progress_bar


def test_the_bar_is_drawn_by_the_thread_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of its own would wait without end for the lock that an interrupted drawing has left taken."""
    reader, terminal = pty.openpty()
    threads = threading.enumerate()
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        with progress_bar("Reading") as progress:
            progress(3, 7)
            assert threading.enumerate() == threads
            shown = b""
            while b"3/7" not in shown:  # a terminal passes on what there is
                shown += os.read(reader, 1 << 16)
    os.close(reader)
