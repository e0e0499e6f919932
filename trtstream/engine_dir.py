"""The engine directory on disk: config.json, the engine's files, the tokenizer. Written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtstream.checksum import file_sha256
from trtstream.errors import TrtstreamError
from trtstream.plugins.kv_cache import kv_bytes_per_session
from trtstream.settings import FORMAT_VERSION, BuildConfig, ModelConfig

CONFIG = "config.json"
TOKENIZER = "tokenizer"
WEIGHTS = "rank0.safetensors"
KERNEL = "rank0.so"
ENGINE = "rank0.engine"


@dataclass(frozen=True)
class EngineConfig:
    """An engine's config.json.

    ``toolchain`` says what built it and what it needs (for ``cpu``: the versions of trtstream and torch, and the CPU's
    instruction sets); ``files`` maps each file's path to its SHA-256.
    """

    target: str
    pretrained_config: ModelConfig
    build_config: BuildConfig
    toolchain: dict[str, Any]
    files: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": FORMAT_VERSION,
            "target": self.target,
            "pretrained_config": self.pretrained_config.to_dict(),
            "build_config": self.build_config.to_dict(),
            "toolchain": self.toolchain,
            "files": self.files,
        }


@contextmanager
def new_directory(output: Path) -> Iterator[Path]:
    """A temporary folder beside ``output`` that becomes it when the block ends well, and is removed otherwise."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise TrtstreamError(f"{output} exists already; remove it or choose another --output")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise TrtstreamError(f"cannot write to {output.parent}: {error.strerror}") from error
    try:
        yield work
        work.chmod(0o755)
        work.rename(output)  # replaces an empty folder
    except OSError as error:
        raise TrtstreamError(f"cannot write {output}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_config(
    folder: Path, target: str, model: ModelConfig, build: BuildConfig, toolchain: dict[str, Any]
) -> EngineConfig:
    """Write config.json over all the files that ``folder`` holds."""
    files = {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    config = EngineConfig(target, model, build, toolchain, files)
    (folder / CONFIG).write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    return config


def read_engine(folder: str | Path) -> EngineConfig:
    """An engine's config, checked for version and for missing files (not their contents: see `verify_files`)."""
    folder = Path(folder)
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise TrtstreamError(f"{folder} is no engine: it has no {CONFIG}; make one with `trtstream build`") from None
    except (OSError, ValueError) as error:
        raise TrtstreamError(f"{path} cannot be read ({error}); rebuild the engine") from error
    version = values.get("version") if isinstance(values, dict) else None
    if version is None or "build_config" not in values:
        raise TrtstreamError(f"{path} is no trtstream engine's; make one with `trtstream build`")
    if version != FORMAT_VERSION:
        raise TrtstreamError(
            f"{folder} has engine format {version}, and this trtstream reads {FORMAT_VERSION}; rebuild the engine"
        )
    try:
        config = EngineConfig(
            target=values["target"],
            pretrained_config=ModelConfig.from_dict(values["pretrained_config"]),
            build_config=BuildConfig.from_dict(values["build_config"]),
            toolchain=values["toolchain"],
            files=values["files"],
        )
    except (KeyError, TypeError) as error:
        raise TrtstreamError(f"{path} is incomplete ({error}); rebuild the engine") from error
    config.build_config.validate(config.target)
    for name in config.files:
        if not (folder / name).is_file():
            raise TrtstreamError(f"{folder} lacks {name}; rebuild the engine")
    return config


def verify_files(folder: Path, config: EngineConfig) -> None:
    """Raise TrtstreamError if a file is not the one that was built."""
    for name, expected in config.files.items():
        if file_sha256(folder / name) != expected:
            raise TrtstreamError(f"{folder / name} is damaged (its SHA-256 is not config.json's); rebuild the engine")


def link_or_copy(source: str, target: str) -> None:
    """A copy function for `shutil.copytree` that takes no space where the file system has hard links."""
    try:
        os.link(os.path.realpath(source), target)  # what a symbolic link points to, not the link
    except OSError:
        shutil.copyfile(source, target)


def directory_bytes(folder: Path) -> int:
    """Size of all files under ``folder``."""
    return sum(os.path.getsize(path) for path in folder.rglob("*") if path.is_file())


def memory_plan(engine: Path, config: EngineConfig) -> dict[str, int]:
    """Bytes that a loaded engine holds, whatever the length of its conversations."""
    per_session = kv_bytes_per_session(config.pretrained_config, config.build_config, config.target)
    # A TensorRT plan holds kernels too, a few MB.
    files = [*engine.rglob("rank*.safetensors"), *engine.glob(ENGINE)]
    weights = sum(path.stat().st_size for path in files)
    caches = per_session * config.build_config.max_batch_size
    return {
        "weights_bytes": weights,
        "kv_cache_bytes_per_session": per_session,
        "kv_cache_bytes": caches,
        "total_bytes": weights + caches,
    }
