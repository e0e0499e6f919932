"""What a running ``trtstream serve`` leaves on the machine: a temporary folder and the names of its shared memory.

A lock file in /dev/shm says whose they are. The kernel drops the lock with its process, however that dies, so that the
next start can remove what is left, and only that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trtstream.deploy.contract import ENLARGE_SHARED_MEMORY
from trtstream.errors import TrtstreamError

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "trtstream-"
LOCK = "lock"
PLAIN_PATH = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
"""Paths that the Python backend can take: its command line goes through a shell without quotes, and its Python knows
ASCII paths only, whatever the locale."""
MODEL_BYTES = 8 << 20
"""Shared memory that each model takes when it starts: the longest text in flight fits, so that it hardly ever grows."""


@dataclass(frozen=True)
class Workplace:
    """``folder`` is empty and private; shared memory whose name begins with ``memory_prefix`` is removed with it."""

    folder: Path
    memory_prefix: str

    def protect_shared_memory(self) -> None:
        """Let no other user read the regions: the Python backend creates them for all, whatever the umask."""
        for region in SHARED_MEMORY.glob(f"{self.memory_prefix}*"):
            with contextlib.suppress(FileNotFoundError):
                region.chmod(0o600)

    def remove_shared_memory(self) -> None:
        for region in SHARED_MEMORY.glob(f"{self.memory_prefix}*"):
            if region.name != f"{self.memory_prefix}{LOCK}":
                region.unlink(missing_ok=True)


@contextlib.contextmanager
def workplace() -> Iterator[Workplace]:
    """A new workplace; leaving the context removes it. Removes those of processes that were killed first."""
    if not PLAIN_PATH.fullmatch(tempfile.gettempdir()):
        raise TrtstreamError(
            f"the temporary folder {tempfile.gettempdir()!r} has a character that Triton's Python backend "
            "cannot take in a path (a space, or one outside of ASCII); set TMPDIR to another folder"
        )
    _sweep()
    prefix = f"{PREFIX}{secrets.token_hex(8)}-"
    lock = SHARED_MEMORY / f"{prefix}{LOCK}"
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        place = Workplace(Path(folder), prefix)
        try:
            # Created and locked under another name: a sweep must never see it unlocked.
            new = lock.with_name(f".{lock.name}")
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, os.fsencode(folder))
            new.rename(lock)
        except OSError as error:
            raise TrtstreamError(
                f"cannot write to {SHARED_MEMORY} ({error.strerror}); {ENLARGE_SHARED_MEMORY}"
            ) from None
        try:
            yield place
        finally:
            place.remove_shared_memory()
            lock.unlink(missing_ok=True)
            os.close(descriptor)


def require_shared_memory(models: int) -> None:
    """Raise TrtstreamError if /dev/shm has too little room for the Python backend of ``models`` models."""
    status = os.statvfs(SHARED_MEMORY)
    free, needed = status.f_bavail * status.f_frsize, models * MODEL_BYTES
    if free < needed:
        raise TrtstreamError(
            f"{SHARED_MEMORY} has {free / 1e6:.1f} MB free and {models} model{'s' * (models > 1)} of Triton's Python "
            f"backend need{'s' * (models == 1)} {needed / 1e6:.1f} MB; {ENLARGE_SHARED_MEMORY}"
        )


def _sweep() -> None:
    for lock in SHARED_MEMORY.glob(f"{PREFIX}*-{LOCK}"):
        with contextlib.suppress(OSError):  # in use (BlockingIOError), somebody else's, or just removed
            if lock.lstat().st_uid != os.geteuid():
                continue
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder = Path(os.fsdecode(file.read()))
                if folder.name.startswith(PREFIX):
                    shutil.rmtree(folder, ignore_errors=True)
                Workplace(folder, lock.name.removesuffix(LOCK)).remove_shared_memory()
                lock.unlink(missing_ok=True)
