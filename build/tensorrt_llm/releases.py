"""What each TensorRT-LLM release takes: the facts that conversion and build rest on, one `Release` a line of releases.

Read from upstream's own code at the commit that each release names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trtstream.errors import TrtstreamError


@dataclass(frozen=True)
class Release:
    """A TensorRT-LLM release, standing for all from it up to the next one listed.

    ``version`` is (major, minor); ``commit`` is upstream's, where the facts were read; ``rope_kinds`` are the
    `trtstream.settings.RopeConfig` kinds that its Llama computes as transformers does.
    """

    version: tuple[int, int]
    commit: str
    rope_kinds: tuple[str, ...]

    @property
    def name(self) -> str:
        return ".".join(map(str, self.version))


RELEASES = (
    Release((0, 10), "9bd15f1937f52658fb116f30d58fea786ce5d03b", ("default", "linear")),
    Release((0, 12), "28fb9aacaa5a05494635194a9cbb264da9a744bd", ("default", "linear", "llama3")),
    Release((0, 17), "350625cc1c0754882f764a6df5540e35caa48ef3", ("default", "linear", "llama3")),
    Release((1, 0), "ae8270b713446948246f16fadf4e2a32e35d0f62", ("default", "linear", "llama3")),
)
DEFAULT = RELEASES[-1]
FIRST_WITHOUT_SINKS = (1, 1)


def find_release(version: str) -> Release:
    """The facts that hold for a TensorRT-LLM version such as ``0.17``, ``0.17.0.post1`` or ``1.0.0rc6``.

    Raises TrtstreamError for one that is too old, or whose engines have lost attention sinks.
    """
    match = re.match(r"v?(\d+)\.(\d+)(?=$|[.+\-a-z])", version.strip())
    if not match:
        raise TrtstreamError(f"TensorRT-LLM version {version!r} is no version; expected one such as 0.17 or 1.0.0")
    found = int(match[1]), int(match[2])
    if found >= FIRST_WITHOUT_SINKS:
        raise TrtstreamError(
            f"TensorRT-LLM {version} has no attention sinks (dropped in 1.1, and TensorRT engines in 1.3); "
            f"use --target tensorrt, or a release from {RELEASES[0].name} to {DEFAULT.name}"
        )
    if found < RELEASES[0].version:
        raise TrtstreamError(
            f"TensorRT-LLM {version} is too old: its checkpoints and flags differ; "
            f"use a release from {RELEASES[0].name} to {DEFAULT.name}"
        )
    return next(release for release in reversed(RELEASES) if release.version <= found)
