"""A C++ compiler that makes nothing twice, for tests that build hundreds of engines of a few sizes.

`install` makes of this file a program that calls the real compiler and caches its output.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path


def install(folder: Path) -> None:
    """Have this process and those that it starts compile with a program in ``folder``, where the output is kept."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return  # the tests that compile say it better
    program = folder / "c++"
    program.write_text(f"#!{sys.executable} -IS\n{Path(__file__).read_text()}\n\ncompile({compiler!r})\n")
    program.chmod(0o755)
    os.environ["CXX"] = str(program)


def compile(compiler: str) -> None:
    """Do what the command line says. Its output was made before if its options and files are the same."""
    arguments = sys.argv[1:]
    if "-o" not in arguments:
        os.execv(compiler, [compiler, *arguments])
    output = Path(arguments[arguments.index("-o") + 1])
    key = hashlib.sha256()
    for argument in arguments:
        path = Path(argument)
        if path != output:
            key.update((path.read_bytes() if path.is_file() else argument.encode()) + b"\0")
        if path.suffix == ".cpp":
            for included in sorted({*path.parent.glob("*.h"), *path.parent.glob("*.cpp")}):
                key.update(included.read_bytes() + b"\0")
    kept = Path(__file__).with_name(key.hexdigest())
    if not kept.exists():
        status = os.spawnv(os.P_WAIT, compiler, [compiler, *arguments])
        if status:
            sys.exit(1)
        unfinished = kept.with_suffix(f".{os.getpid()}")
        shutil.copyfile(output, unfinished)
        os.replace(unfinished, kept)
    shutil.copyfile(kept, output)
