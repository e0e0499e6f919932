"""The compiler of these tests makes what the real one makes, and makes it once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import compiler


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A compiler that notes what it is asked for, behind the one of these tests."""
    real = tmp_path / "real"
    real.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexec g++ "$@"\n')
    real.chmod(0o755)
    monkeypatch.setenv("CXX", str(real))
    compiler.install(tmp_path, tmp_path / "kept")
    (tmp_path / "asked").unlink()  # for its version
    return [str(tmp_path / "c++"), "-c", str(tmp_path / "x.cpp"), "-o", str(tmp_path / "x.o")]


def test_what_was_compiled_before_is_not_compiled_again(command: list[str], tmp_path: Path) -> None:
    made = []
    for source, options in (("int x = N;", "-DN=1"), ("int x = N;", "-DN=1"), ("int x = N;", "-DN=2"), ("", "-DN=1")):
        (tmp_path / "x.cpp").write_text(source)
        (tmp_path / "x.o").unlink(missing_ok=True)
        subprocess.run([*command, options], check=True)
        made.append((tmp_path / "x.o").read_bytes())
        subprocess.run(["g++", *command[1:], options], check=True)
        assert made[-1] == (tmp_path / "x.o").read_bytes()
    assert made[0] == made[1]
    assert len(set(made)) == len((tmp_path / "asked").read_text().splitlines()) == 3


@pytest.mark.parametrize("macro", ["-DN=1", "-D_GLIBCXX_ASSERTIONS"])
def test_headers_of_the_library_are_read_once(macro: str, command: list[str], tmp_path: Path) -> None:
    """With two sources of the same options; the result is the same, also with a macro that changes what headers say."""
    for body in ("return v[0];", "return v.at(1);"):
        (tmp_path / "x.cpp").write_text(f"#include <vector>\nint f(std::vector<int> v) {{ {body} }}\n")
        subprocess.run([*command, macro, "-O2"], check=True)
        made = (tmp_path / "x.o").read_bytes()
        subprocess.run(["g++", *command[1:], macro, "-O2"], check=True)
        assert made == (tmp_path / "x.o").read_bytes()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert ["c++-header" in line for line in asked] == [True, False, False]


def test_headers_count_wherever_they_are(command: list[str], tmp_path: Path) -> None:
    """A header in a folder of its own; two files with the same contents in exchanged places."""
    (tmp_path / "x.cpp").write_text('#include "a.h"\n')
    made = []
    for number, texts in enumerate((("int a;", "int b;"), ("int b;", "int a;"), ("int a;", "int b;"))):
        headers = tmp_path / f"headers{number}"
        headers.mkdir()
        for name, text in zip(("a.h", "b.h"), texts, strict=True):
            (headers / name).write_text(text)
        subprocess.run([*command, f"-I{headers}"], check=True)
        made.append((tmp_path / "x.o").read_bytes())
    assert made[0] == made[2] != made[1]
    assert len((tmp_path / "asked").read_text().splitlines()) == 2


def test_what_is_long_unused_is_removed(command: list[str], tmp_path: Path) -> None:
    for name in ("x.cpp", "y.cpp"):
        (tmp_path / name).write_text(f"int {name[0]};")
        subprocess.run([command[0], "-c", str(tmp_path / name), "-o", str(tmp_path / "x.o")], check=True)
    old, new = sorted((tmp_path / "kept").iterdir())
    os.utime(old, (0, 0))
    compiler.install(tmp_path, tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == [new]


def test_errors_are_the_compilers(command: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        (tmp_path / "x.cpp").write_text("int x = ;")
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode != 0
        assert "error: expected" in done.stderr
