"""SHA-256 of files."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

BLOCK = 1 << 22  # bytes read at once


def file_sha256(path: Path, length: int = sys.maxsize) -> str:
    """The SHA-256 of a file's contents, or of its first ``length`` bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(min(BLOCK, length)):
            digest.update(block)
            length -= len(block)
    return digest.hexdigest()
