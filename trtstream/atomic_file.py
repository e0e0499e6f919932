"""A file that is there whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"  # ends the name of a file that is being written


@contextmanager
def atomic_file(path: Path, mode: int = 0o600) -> Iterator[Path]:
    """A new file beside ``path``, to be written in the block. It replaces ``path`` when the block ends.

    Its permissions are ``mode``. If the block raises, ``path`` is as it was, and the new file is removed.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
    os.close(descriptor)
    work = Path(name)
    try:
        work.chmod(mode)
        yield work
        os.replace(work, path)
    finally:
        work.unlink(missing_ok=True)
