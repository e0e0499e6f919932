"""The facts about TensorRT-LLM's releases that conversion and build depend on; a `Release` covers a line of releases.

Read from upstream's code, https://github.com/NVIDIA/TensorRT-LLM, at the commit that each release names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from trtstream.errors import TrtstreamError


@dataclass(frozen=True)
class Release:
    """A TensorRT-LLM release, and all others up to the next one listed.

    ``version`` is (major, minor); ``commit`` is upstream's commit where the facts were read, the release's or
    the nearest one available; ``rope_kinds`` are the `trtstream.settings.RopeConfig` kinds that its Llama computes as
    transformers does; ``falcon_rotary_base`` says whether its Falcon has a RoPE base other than 10000; ``fixed_fields``
    are in the config of every checkpoint, ``llama_fields`` in a Llama's; ``container`` is a Triton image that has it.
    """

    version: tuple[int, int]
    commit: str
    rope_kinds: tuple[str, ...]
    falcon_rotary_base: bool
    fixed_fields: Mapping[str, object]
    llama_fields: Mapping[str, object]
    container: str

    @property
    def name(self) -> str:
        return ".".join(map(str, self.version))


LLAMA_FIELDS = {
    "residual_mlp": False,
    "disable_weight_only_quant_plugin": False,
    "remove_duplicated_kv_heads": False,
}
RELEASES = (
    Release(
        (0, 10),
        "9bd15f1937f52658fb116f30d58fea786ce5d03b",
        rope_kinds=("default", "dynamic", "linear"),
        falcon_rotary_base=False,
        fixed_fields={"share_embedding_table": False},
        llama_fields={"residual_mlp": False},
        container="nvcr.io/nvidia/tritonserver:24.06-trtllm-python-py3",
    ),
    Release(
        (0, 12),
        "28fb9aacaa5a05494635194a9cbb264da9a744bd",
        rope_kinds=("default", "dynamic", "linear", "llama3"),
        falcon_rotary_base=False,
        fixed_fields={"share_embedding_table": False},
        llama_fields=LLAMA_FIELDS,
        container="nvcr.io/nvidia/tritonserver:24.08-trtllm-python-py3",
    ),
    Release(
        (0, 17),
        "be1788106245496872d18e702978e59b6bfd50e0",
        rope_kinds=("default", "dynamic", "linear", "llama3"),
        falcon_rotary_base=True,
        fixed_fields={},
        llama_fields=LLAMA_FIELDS,
        container="nvcr.io/nvidia/tritonserver:25.01-trtllm-python-py3",
    ),
    Release(
        (1, 0),
        "01ea6d79d454bb3ab10c7510a6f706ba039090c2",
        rope_kinds=("default", "dynamic", "linear", "llama3"),
        falcon_rotary_base=True,
        fixed_fields={},
        llama_fields=LLAMA_FIELDS,
        container="nvcr.io/nvidia/tritonserver:25.09-trtllm-python-py3",
    ),
)
DEFAULT = RELEASES[-2]  # upstream dropped sinks from its main branch before 1.0 was released; 0.17 certainly has them
FIRST_WITHOUT_SINKS = (1, 1)


def find_release(version: str) -> Release:
    """The facts that hold for a TensorRT-LLM version such as ``0.17``, ``0.17.0.post1`` or ``1.0.0rc6``.

    Raises TrtstreamError for one that is too old, or whose engines have no attention sinks any more.
    """
    match = re.match(r"v?(\d+)\.(\d+)(?=$|[.+\-a-z])", version.strip())
    if not match:
        raise TrtstreamError(f"TensorRT-LLM version {version!r} is not a version; expected one such as 0.17 or 1.0.0")
    found = int(match[1]), int(match[2])
    if found >= FIRST_WITHOUT_SINKS:
        raise TrtstreamError(
            f"TensorRT-LLM {version} has no attention sinks (dropped in 1.1, and TensorRT engines in 1.3); "
            f"use --target tensorrt or cuda, or a release from {RELEASES[0].name} to {RELEASES[-1].name}"
        )
    if found < RELEASES[0].version:
        raise TrtstreamError(
            f"TensorRT-LLM {version} is too old: its checkpoints and flags differ; "
            f"use a release from {RELEASES[0].name} to {RELEASES[-1].name}"
        )
    return next(release for release in reversed(RELEASES) if release.version <= found)
