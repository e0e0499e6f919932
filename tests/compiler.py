"""A C++ compiler that makes nothing twice, for tests that build hundreds of engines of a few sizes.

`install` makes of this file a program that calls the real compiler and keeps its output, in the next runs too. What is
new is compiled with the library's headers precompiled, which are read once for all files with the same options.
"""

import contextlib
import hashlib
import os
import re
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
    headers: set[bytes] = set()
    for argument in arguments:
        path = Path(argument.removeprefix("-I"))
        if path == output:
            continue
        if path.is_dir():  # of headers: what they hold counts, not where they are
            argument = "-I"
        key.update((path.read_bytes() if path.is_file() else argument.encode()) + b"\0")
        folders = [path.parent] if path.suffix == ".cpp" else [path] if path.is_dir() else []
        for included in sorted(file for f in folders for file in f.iterdir() if file.suffix in (".h", ".cpp")):
            text = included.read_bytes()
            key.update(included.name.encode() + b"\0" + text + b"\0")
            headers.update(re.findall(rb"^#include (<.+>)", text, re.MULTILINE))
    kept = folder / key.hexdigest()
    try:
        os.utime(kept)
    except FileNotFoundError:
        prelude = ["-include", str(precompiled(compiler, headers))] if "-c" in arguments and headers else []
        status = os.spawnv(os.P_WAIT, compiler, [compiler, *arguments, *prelude])
        if status:
            sys.exit(1)
        unfinished = kept.with_suffix(f".{os.getpid()}")
        shutil.copyfile(output, unfinished)
        os.replace(unfinished, kept)
    shutil.copyfile(kept, output)


def precompiled(compiler: str, headers: set[bytes]) -> Path:
    """A header that includes those of the library. Its neighbour .gch is what the compiler reads in its place.

    Macros may change what headers say: then the compiler does not take the .gch, and reads the header.
    """
    options = [a for a in sys.argv[1:] if re.match("-[Ofmsg]", a)]
    lines = [b"#if __has_include(%s)\n#include %s\n#endif\n" % (header, header) for header in sorted(headers)]
    name = hashlib.sha256(b"".join(lines) + " ".join(options).encode()).hexdigest()
    folder = Path(__file__).parent / name
    if not folder.exists():
        unfinished = folder.with_suffix(f".{os.getpid()}")
        unfinished.mkdir()
        header = unfinished / "library.h"
        header.write_bytes(b"".join(lines))
        os.spawnv(os.P_WAIT, compiler, [compiler, *options, "-x", "c++-header", str(header), "-o", f"{header}.gch"])
        with contextlib.suppress(OSError):  # another process was faster
            unfinished.rename(folder)
    return folder / "library.h"
