"""The cpu target's C++ with a mistake in it, for tests that must see one."""

from __future__ import annotations

import shutil
from pathlib import Path

from trtstream.plugins.cpu_kernel import FOLDER


def mutated_sources(folder: Path, file: str, right: str, wrong: str) -> Path:
    """A copy of plugins/cpu/ in ``folder``, in which ``file`` has ``wrong`` wherever it has ``right``."""
    sources = folder / "cpu"
    shutil.copytree(FOLDER, sources)
    text = (sources / file).read_text()
    assert right in text, f"{right!r} is not in {file} any more"
    (sources / file).write_text(text.replace(right, wrong))
    return sources
