"""Modules with one mistake, which tests must see."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_mutant(module: ModuleType, right: str, wrong: str, folder: Path) -> ModuleType:
    """``module`` with ``right`` replaced by ``wrong`` in its source, which is written into ``folder``."""
    source = Path(module.__file__).read_text()
    assert right in source, f"{right!r} is not in {module.__name__} any more"
    path = folder / "mutant.py"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("mutant", path)
    mutant = importlib.util.module_from_spec(spec)
    sys.modules["mutant"] = mutant  # where its dataclasses look for it
    try:
        spec.loader.exec_module(mutant)
    finally:
        del sys.modules["mutant"]
    return mutant
