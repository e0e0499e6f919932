"""The file of what TensorRT-RTX has compiled for an engine on this kind of GPU, so that the next start need not.

It lies beside the engine, and is a cache: without it, or with another's, the engine starts more slowly. The library
refuses what another version of it or another GPU has compiled; the checksum is for files that were cut off or damaged.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from trtstream.atomic_file import atomic_file
from trtstream.errors import one_line

logger = logging.getLogger(__name__)

CHECKSUM_BYTES = 32


def runtime_cache_path(engine: Path, version: str, capability: tuple[int, int]) -> Path:
    """Where the cache of the engine file ``engine`` is for this version of the library and compute capability."""
    major, minor = capability
    return engine.with_suffix(f".{version}.sm{major}{minor}.cache")


def read_runtime_cache(path: Path, deserialize: Callable[[bytes], bool]) -> None:
    """Give ``deserialize`` what was saved at ``path``, if anything was.

    A file that cannot be read, is damaged or is refused (``deserialize`` returns False) is logged in a line.
    """
    try:
        saved = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("%s is not used: it cannot be read (%s)", path, one_line(error))
        return
    checksum, contents = saved[:CHECKSUM_BYTES], saved[CHECKSUM_BYTES:]
    if checksum != hashlib.sha256(contents).digest():
        logger.warning("%s is not used: it is damaged; it will be written again", path)
    elif not deserialize(contents):
        logger.warning("%s is not used: another GPU, driver or library has written it; it will be written again", path)


def save_runtime_cache(path: Path, contents: bytes) -> None:
    """Write ``contents`` to ``path`` atomically. Where that is not possible, a line in the log says so."""
    try:
        with atomic_file(path, 0o644) as work:  # for other users of the engine, as its other files are
            work.write_bytes(hashlib.sha256(contents).digest() + contents)
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next start compiles again", path, one_line(error))
