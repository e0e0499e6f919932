"""A C++ compiler that makes nothing twice, for tests that build hundreds of engines of a few sizes.

`install` makes of this file a program that calls the real compiler and keeps its output, in the next runs too.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

KEPT_SECONDS = 30 * 24 * 60 * 60.0
"""What has not been used for that long is removed."""


def install(folder: Path, kept: Path) -> None:
    """Have this process and those that it starts compile with a program in ``folder``; its output stays in ``kept``."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return  # the tests that compile say it better
    kept.mkdir(parents=True, exist_ok=True)
    for path in kept.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run's, unfinished
            if path.stat().st_mtime < time.time() - KEPT_SECONDS:
                path.unlink()
    # The compiler's version, and what -march=native means here.
    command = [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    machine = hashlib.sha256(subprocess.run(command, capture_output=True).stdout).hexdigest()
    program = folder / "c++"
    code = f"#!{sys.executable} -IS\n{Path(__file__).read_text()}\n\n"
    program.write_text(f"{code}compile({compiler!r}, {machine!r}, Path({str(kept)!r}))\n")
    program.chmod(0o755)
    os.environ["CXX"] = str(program)


def compile(compiler: str, machine: str, folder: Path) -> None:
    """Do what the command line says. Its output was made before if its options and files are the same."""
    arguments = sys.argv[1:]
    if "-o" not in arguments:
        os.execv(compiler, [compiler, *arguments])
    output = Path(arguments[arguments.index("-o") + 1])
    key = hashlib.sha256(f"{compiler} {machine}\0".encode())
    for argument in arguments:
        path = Path(argument.removeprefix("-I"))
        if path == output:
            continue
        if path.is_dir():  # of headers: what they hold counts, not where they are
            argument = "-I"
        key.update((path.read_bytes() if path.is_file() else argument.encode()) + b"\0")
        folders = [path.parent] if path.suffix == ".cpp" else [path] if path.is_dir() else []
        for included in sorted(file for f in folders for file in f.iterdir() if file.suffix in (".h", ".cpp")):
            key.update(included.name.encode() + b"\0" + included.read_bytes() + b"\0")
    kept = folder / key.hexdigest()
    try:
        os.utime(kept)
    except FileNotFoundError:
        status = os.spawnv(os.P_WAIT, compiler, [compiler, *arguments])
        if status:
            sys.exit(1)
        unfinished = kept.with_suffix(f".{os.getpid()}")
        shutil.copyfile(output, unfinished)
        os.replace(unfinished, kept)
    shutil.copyfile(kept, output)
