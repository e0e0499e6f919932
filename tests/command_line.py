"""Runs ``trtstream``: as its users do, in a process of its own, or in this one, which has imported torch already."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from trtstream.cli import main


def run_trtstream(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run to the end; the caller looks at returncode, stdout and stderr."""
    command = [sys.executable, "-m", "trtstream", *(str(argument) for argument in arguments)]
    done = subprocess.run(command, input=stdin.encode(), capture_output=True, timeout=120)
    # Not text=True, which would make line feeds of a model's carriage returns.
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def run_in_process(*arguments: object, main: Callable[[], None] = main) -> subprocess.CompletedProcess[str]:
    """The same in this process, or another command's ``main``: for what ends by itself and starts no process."""
    command = ["trtstream", *(str(argument) for argument in arguments)]
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            patch.setattr(sys, "argv", command)
            main()
    except SystemExit as exit:
        status = exit.code or 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(command, status, stdout.getvalue(), stderr.getvalue())
