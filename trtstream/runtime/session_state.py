"""The state of one session outside an engine, and the file that it is saved in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trtstream import failpoint
from trtstream.atomic_file import atomic_file
from trtstream.checksum import file_sha256
from trtstream.errors import TrtstreamError, one_line
from trtstream.runtime.host_copies import Arrival

FORMAT_VERSION = "1"
VERSION = "trtstream_session"  # key of the format version in a file's metadata
CHECKSUM_BYTES = 32


@dataclass
class SessionState:
    """A session: its position, the ids that its cache can be rebuilt from, and the cache itself where it is at hand.

    ``token_ids`` are the session's sinks followed by its last ``L * (R - 1) + 1`` tokens (fewer when it is young):
    enough to rebuild the cache on any engine of the same checkpoint and window, because the receptive field grows by
    R - 1 tokens a layer. ``kv_cache`` [layers, ...], on the CPU, is the cache as the engine that exported it has it
    (`trtstream.plugins.kv_cache`), or None. Whoever reads its bytes waits for its ``arrival`` first, if that is not
    None: an engine's GPU may still be copying them.
    """

    sink_token_length: int
    position: int
    token_ids: list[int]
    kv_cache: torch.Tensor | None = None
    arrival: Arrival | None = field(default=None, compare=False)

    def save(self, path: Path, identity: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
        """Write the session to ``path`` atomically, as a safetensors file that only its owner can read.

        ``identity`` identifies the engine that the session belongs to, and the work: `load` refuses the file where any
        of it differs. ``metadata`` travels with the session. Both are JSON values. Raises TrtstreamError if the file
        cannot be written.
        """
        from safetensors import SafetensorError  # not above: benchmarks run where torch is the only package
        from safetensors.torch import save_file

        session = {
            "sink_token_length": self.sink_token_length,
            "position": self.position,
            "identity": dict(identity),
            "metadata": dict(metadata or {}),
        }
        header = {VERSION: FORMAT_VERSION, "session": json.dumps(session)}
        tensors = {"token_ids": torch.tensor(self.token_ids, dtype=torch.int32)}
        if self.kv_cache is not None:
            if self.arrival is not None:
                self.arrival.wait()
            tensors["kv_cache"] = self.kv_cache.contiguous()
        # safetensors puts the smallest dtype last, so the checksum ends the file and covers everything before it.
        tensors["sha256"] = torch.zeros(CHECKSUM_BYTES, dtype=torch.uint8)
        try:
            with atomic_file(path) as work:
                save_file(tensors, work, metadata=header)
                failpoint.reach("snapshot-write")
                checksum = bytes.fromhex(file_sha256(work, work.stat().st_size - CHECKSUM_BYTES))
                with work.open("r+b") as file:
                    file.seek(-CHECKSUM_BYTES, os.SEEK_END)
                    file.write(checksum)
                failpoint.reach("snapshot-rename")
        except (SafetensorError, OSError) as error:
            raise TrtstreamError(f"{path} cannot be written ({error})") from error

    @classmethod
    def load(cls, path: Path, identity: Mapping[str, Any]) -> tuple[SessionState, dict[str, Any]]:
        """Read the file that `save` wrote; returns the session and its metadata.

        Raises TrtstreamError, which names the file, if it cannot be read, is not a saved session or a damaged one, has
        another format version, or was saved with another ``identity``.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            contents = path.read_bytes()  # once: its checksum takes longer than all else that resuming a session does
            header = _metadata(contents)
            _check_version(path, header.get(VERSION))
            if contents[-CHECKSUM_BYTES:] != hashlib.sha256(memoryview(contents)[:-CHECKSUM_BYTES]).digest():
                raise TrtstreamError(
                    f"{path} is damaged (its SHA-256 does not match its contents); remove it to start over"
                )
            tensors = load(contents)
            session = json.loads(header["session"])
            token_ids, cache = tensors["token_ids"].tolist(), tensors.get("kv_cache")
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise TrtstreamError(
                f"{path} cannot be read as a saved session ({error}); remove it to start over"
            ) from error
        _check_identity(path, session["identity"], json.loads(json.dumps(dict(identity))))
        return cls(session["sink_token_length"], session["position"], token_ids, cache), session["metadata"]


def _metadata(contents: bytes) -> dict[str, str]:
    """What safetensors' ``safe_open`` calls a file's metadata, without opening it once more: its first 8 bytes are the
    length of a JSON header. Raises ValueError."""
    try:
        header = json.loads(contents[8 : 8 + int.from_bytes(contents[:8], "little")])
        return dict(header.get("__metadata__", {}))
    except (AttributeError, RecursionError) as error:
        raise ValueError(one_line(error)) from None


def _check_version(path: Path, version: str | None) -> None:
    if version is None:
        raise TrtstreamError(f"{path} is not a saved session; choose another file")
    if version != FORMAT_VERSION:
        raise TrtstreamError(
            f"{path} has session format {version}, and this trtstream reads {FORMAT_VERSION}; remove it to start over, "
            "or use the trtstream that saved it"
        )


def _check_identity(path: Path, saved: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in sorted({*saved, *expected}):
        if saved.get(name) != expected.get(name):
            raise TrtstreamError(
                f"{path} was saved with {name} {saved.get(name)!r}, and this one has {expected.get(name)!r}; use "
                "another folder, or remove it to start over"
            )
