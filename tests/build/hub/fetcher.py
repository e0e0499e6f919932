"""Fetches repositories in processes of their own, with the real huggingface_hub."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FETCH = """
import os, sys
from trtstream.build.hub import local_checkpoint
from trtstream.errors import TrtstreamError
for argument in sys.argv[1:]:
    if argument.startswith("HF_TOKEN="):  # the only variable that huggingface_hub reads whenever it needs it
        os.environ["HF_TOKEN"] = argument.removeprefix("HF_TOKEN=")
        continue
    name, _, revision = argument.partition("@")
    try:
        print("path", local_checkpoint(name, revision or None))
    except TrtstreamError as error:
        print("error", error)
"""


# Importing torch takes most of a process's time; huggingface_hub reads its environment when it is imported.
FORK = (
    """
import json, os, sys
import trtstream.build.huggingface_folder
assert "torch" in sys.modules and "huggingface_hub" not in sys.modules
for line in sys.stdin:
    process = os.fork()
    if process == 0:
        sys.argv[1:], environment, folder, stdout, stderr = json.loads(line)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        for number, path in ((1, stdout), (2, stderr)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
else:
    sys.exit()
"""
    + """
if sys.argv[1] == "trtstream":
    del sys.argv[1]
    from trtstream.__main__ import main
    sys.exit(main())
"""
    + FETCH
)


@dataclass(frozen=True)
class Fetcher:
    """Fetches ``NAME`` or ``NAME@REVISION``, several in one new process.

    ``HF_TOKEN=TOKEN`` among the names is for those behind it; ``variables`` are for all.
    """

    with_torch: subprocess.Popen[str]
    environment: dict[str, str]
    folder: Path

    def run(self, *names: str, **variables: str) -> subprocess.CompletedProcess[str]:
        done = self._fork(names, variables)
        assert done.returncode == 0, done.stderr
        return done

    def _fork(self, arguments: Sequence[object], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        outputs = [self.folder / "stdout", self.folder / "stderr"]
        request = [arguments, {**self.environment, **variables}, self.folder, *outputs]
        assert self.with_torch.stdin
        assert self.with_torch.stdout
        print(json.dumps(request, default=str), file=self.with_torch.stdin, flush=True)
        status = int(self.with_torch.stdout.readline())
        stdout, stderr = (path.read_text() for path in outputs)
        return subprocess.CompletedProcess(arguments, status, stdout, stderr)

    def command(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """``trtstream`` with arguments."""
        return self._fork(["trtstream", *arguments], variables)

    def paths(self, *names: str, **variables: str) -> list[Path]:
        """The paths of what is fetched."""
        lines = self.run(*names, **variables).stdout.splitlines()
        assert all(line.startswith("path ") for line in lines), lines
        return [Path(line.removeprefix("path ")) for line in lines]

    def errors(self, *names: str, **variables: str) -> list[str]:
        """The refusals, each of one line; nothing else is printed."""
        done = self.run(*names, **variables)
        lines = done.stdout.splitlines()
        assert len(lines) == sum(not name.startswith("HF_TOKEN=") for name in names)
        assert all(line.startswith("error ") for line in lines), lines
        assert done.stderr == ""
        return [line.removeprefix("error ") for line in lines]
