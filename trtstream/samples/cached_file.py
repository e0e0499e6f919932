"""Files that are fetched once and kept: in ``$TRTSTREAM_CACHE``, else in ``~/.cache/trtstream``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from trtstream.checksum import file_sha256
from trtstream.errors import TrtstreamError


def cached_file(
    cache: Path | None, name: str, sha256: str, fetch: Callable[[Path, Path], Path], unexpected: str, room: str
) -> Path:
    """The path of the file ``name`` in ``cache``, fetched unless it is there undamaged; whole or not at all.

    ``fetch(folder, path)`` makes it in a temporary ``folder`` and returns where; ``path`` is where it will go. Raises
    TrtstreamError if the contents are not the expected ones (``unexpected`` names them) or ``room`` is not to be had.
    """
    cache = cache or Path(os.environ.get("TRTSTREAM_CACHE") or Path.home() / ".cache" / "trtstream")
    path = cache / name
    if path.is_file() and file_sha256(path) == sha256:
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as folder:
            fetched = fetch(Path(folder), path)
            if file_sha256(fetched) != sha256:
                raise TrtstreamError(f"{unexpected} is not the expected one: expected sha256 {sha256}")
            os.replace(fetched, path)
    except OSError as error:
        raise TrtstreamError(
            f"{path} cannot be written ({error.strerror}); set TRTSTREAM_CACHE to a folder with {room} of room"
        ) from error
    return path
