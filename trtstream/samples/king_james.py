"""The King James Bible (1611, public domain), a text of a million tokens, from Debian's packages.

The text of the long measurements in docs/results.md, which ``trtstream eval`` makes wherever it is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from trtstream.errors import TrtstreamError
from trtstream.samples.cached_file import cached_file

PACKAGES = ("bible-kjv", "bible-kjv-text")  # the program that reads the compressed text, and the text
FILE_NAME = "king-james-bible.txt"
SHA256 = "b5c4940bcfeee072c0935b5200d0f9d88a00a0199cb0961d16133458fcdfae5d"


def fetch_king_james(cache: Path | None = None) -> Path:
    """The path of the text (4.1 MB, a verse a line, without verse numbers), fetched with apt unless ``cache`` has it.

    ``cache`` defaults to ``$TRTSTREAM_CACHE``, then to ``~/.cache/trtstream``; nothing is installed, and no root is
    needed. Raises TrtstreamError, which says how to do it by hand, if the text cannot be fetched.
    """
    return cached_file(FILE_NAME, SHA256, _fetch, cache=cache, package=PACKAGES[1], megabytes=20)


def _fetch(folder: Path, _path: Path) -> Path:
    print(f"fetching {' and '.join(PACKAGES)} (2.5 MB) from Debian", file=sys.stderr)
    _run(folder, "apt-get", "download", *PACKAGES)
    for package in folder.glob("*.deb"):
        _run(folder, "dpkg-deb", "--extract", package.name, "unpacked")
    # Without pretty-printing (-f) a line is a verse behind its number.
    verses = _run(folder, "unpacked/usr/bin/bible", "-p", "unpacked/usr/lib", "-f", "gen1:1-rev22:21")
    text = folder / FILE_NAME
    text.write_text(re.sub(r"^\S+ ", "", verses, flags=re.MULTILINE))
    return text


def _run(folder: Path, *command: str) -> str:
    """Run ``command`` in ``folder``; returns its output."""
    try:
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1] if done.returncode else None
    except FileNotFoundError:
        reason = "not found"
    if reason is not None:
        raise TrtstreamError(
            f"{command[0]} failed ({reason}); where Debian's packages {' and '.join(PACKAGES)} are installed, run "
            f"`bible -f gen1:1-rev22:21 | sed 's/^[^ ]* //'` and put what it prints into {FILE_NAME} in the cache"
        )
    return done.stdout
