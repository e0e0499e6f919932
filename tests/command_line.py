"""Runs ``trtstream`` as its users do: as a process of its own."""

from __future__ import annotations

import subprocess
import sys


def run_trtstream(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run to the end; the caller looks at returncode, stdout and stderr."""
    command = [sys.executable, "-m", "trtstream", *(str(argument) for argument in arguments)]
    done = subprocess.run(command, input=stdin.encode(), capture_output=True, timeout=120)
    # Not text=True, which would make line feeds of a model's carriage returns.
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())
