"""What a release holds: the project's files in a folder of their own, and the wheel and the sdist built from them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.release import ROOT, build_wheel


@pytest.fixture(scope="session")
def project_files() -> list[str]:
    """The files that git tracks or would take, by their paths from the root; a link is a file."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    # In the middle of a change, git may list files that were deleted.
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="session")
def sources(project_files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without what earlier builds left in the checkout, which would hide removed files."""
    folder = tmp_path_factory.mktemp("sources")
    for name in project_files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    # What tests and commands leave behind in a checkout must not be packaged.
    for room in ("plugins", "model_repo/trtstream/1"):
        (folder / room / "__pycache__").mkdir()
        (folder / room / "__pycache__" / "left.cpython-311.pyc").touch()
    return folder


@pytest.fixture(scope="session")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(sources, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def sdist(sources: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, built after the wheel so that the two do not share the build's folders at the same time."""
    folder = tmp_path_factory.mktemp("sdist")
    # Not `python -m build`, which in the project's root would run the room of that name.
    program = f"import setuptools.build_meta as backend; backend.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-I", "-c", program], cwd=sources, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz"))
