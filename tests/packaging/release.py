"""Builds a wheel, and runs it where a user would: outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of a source folder or an sdist with the setuptools of this environment, without a network."""
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, cwd=folder, check=True)
    return next(folder.glob("*.whl"))


def run_outside(environment: Path, folder: Path, program: str, *arguments: object, stdin: str = "") -> str:
    """Run one of the environment's programs in a folder that is not the checkout; returns its stdout."""
    command = [str(environment / "bin" / program), *map(str, arguments)]
    run = subprocess.run(command, cwd=folder, env=outside(), input=stdin, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def outside() -> dict[str, str]:
    """A user's environment variables: this process's without what leads to the checkout, or is the tests' own."""
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS")
    return {name: value for name, value in os.environ.items() if name not in ours}
