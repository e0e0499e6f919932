"""The Dockerfiles: what of them can be checked where no image can be pulled."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.release import ROOT, build_wheel

DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("Dockerfile.*"))


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, path], capture_output=True, text=True)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix[1:])
def test_a_dockerfile_is_sound(path: Path) -> None:
    done = hadolint(path)
    assert done.returncode == 0, done.stdout
    text = path.read_text()
    last_stage = text[text.rindex("\nFROM ") :]
    assert re.findall(r"^USER (.+)$", last_stage, re.MULTILINE) == ["1000:1000"]  # as the chart's pods have it
    assert 'ENTRYPOINT ["trtstream"]' in last_stage
    assert "HEALTHCHECK" in last_stage
    assert "/ready" in last_stage


def test_hadolint_sees_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text("FROM python:latest\nRUN cd /tmp && pip install numpy\n")
    assert {"DL3007", "DL3042"} <= set(re.findall(r"DL\d+", hadolint(path).stdout))


def is_sent(name: str, patterns: list[str]) -> bool:
    """Whether ``docker build`` sends a file: the last of .dockerignore's patterns that match decides."""
    sent = True
    parts = Path(name).parts
    for pattern in patterns:
        shape = pattern.removeprefix("!")
        if shape.startswith("**/"):
            matches = any(fnmatch.fnmatch(part, shape.removeprefix("**/")) for part in parts)
        else:
            matches = any(fnmatch.fnmatch("/".join(parts[:end]), shape) for end in range(1, len(parts) + 1))
        if matches:
            sent = pattern.startswith("!")
    return sent


@pytest.mark.process
@pytest.mark.slow
def test_an_image_gets_the_same_wheel(wheel: Path, sources: Path, project_files: list[str], tmp_path: Path) -> None:
    """The first stage of both files, on this machine."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    context = tmp_path / "src"
    for name in filter(lambda name: is_sent(name, patterns), project_files):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(sources / name, context / name, follow_symlinks=False)
    assert not is_sent("plugins/__pycache__/left.pyc", patterns)
    assert not (context / "tests").exists()
    assert (context / "constraints.txt").is_file()
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(build_wheel(context, tmp_path)) as built:
        assert {each.filename: each.CRC for each in built.infolist()} == {
            each.filename: each.CRC for each in whole.infolist()
        }
