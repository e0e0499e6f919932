"""The engine directory on disk: config.json, the engine's files, the tokenizer. It is written atomically."""

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
from trtstream.targets import TARGETS

CONFIG = "config.json"
TOKENIZER = "tokenizer"
WEIGHTS = "rank0.safetensors"
KERNEL = "rank0.so"
ENGINE = "rank0.engine"


@dataclass(frozen=True)
class EngineConfig:
    """An engine's config.json.

    ``toolchain`` names the software that built it and its needs (for ``cpu``: the versions of trtstream and torch, and
    the CPU's instruction sets); ``files`` maps each file's path to its SHA-256.
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


@dataclass(frozen=True)
class EngineMemory:
    """Bytes that a loaded engine holds, however long its conversations get.

    ``workspace`` is an estimate of the memory that a call computes in, or None: then ``total`` does not include it.
    """

    weights: int
    kv_cache_per_session: int
    sessions: int
    workspace: int | None

    @property
    def kv_cache(self) -> int:
        return self.sessions * self.kv_cache_per_session

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + (self.workspace or 0)

    def sessions_in(self, memory: int) -> int:
        """How many sessions fit into ``memory`` bytes; without a workspace that is an upper bound.

        The workspace hardly grows with the number of sessions.
        """
        return max(memory - self.weights - (self.workspace or 0), 0) // self.kv_cache_per_session


@contextmanager
def new_directory(output: Path) -> Iterator[Path]:
    """A temporary folder next to ``output`` that becomes it if the block succeeds, and is removed if it fails."""
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
        raise TrtstreamError(f"{folder} is not an engine: {_what_it_is_instead(folder)}") from None
    except (OSError, ValueError) as error:
        raise TrtstreamError(f"{path} cannot be read ({error}); rebuild the engine") from error
    if not isinstance(values, dict) or not is_engine(folder):
        raise TrtstreamError(f"{folder} is not an engine: {_what_it_is_instead(folder)}")
    version = values.get("version")
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


def is_engine(folder: Path) -> bool:
    """Whether ``folder`` is an engine's, perhaps a damaged one's or of another version."""
    try:
        text = (folder / CONFIG).read_text(errors="replace")
    except OSError:
        return False
    return all(f'"{key}"' in text for key in ("version", "build_config", "toolchain"))


def is_model_repository(folder: Path) -> bool:
    """Whether ``folder`` is a Triton model repository."""
    return any(folder.glob("*/config.pbtxt"))


def _what_it_is_instead(path: Path) -> str:
    """The end of an error message: the kind of thing that ``path`` is, as it is not an engine, and what to do."""
    if is_model_repository(path):
        engine = next(filter(is_engine, path.glob("*/1/engine")), None)
        return "it is a Triton model repository" + ("" if engine is None else f", and its engine is {engine}")
    if path.suffix == ".gguf" or (path / CONFIG).exists():
        return "it is a checkpoint; make an engine of it with `trtstream build`"
    return f"it has no {CONFIG}; make one with `trtstream build`"


def check_runnable(folder: Path, config: EngineConfig) -> None:
    """Raise TrtstreamError if this machine cannot run engines like this one. Quick: no file of it is read."""
    target = TARGETS[config.target]
    reason = target.why_not() or target.why_not_built_with(config.toolchain)
    if reason is not None:
        raise TrtstreamError(f"{folder} was built for target {config.target!r} and cannot run here: {reason}")


def verify_files(folder: Path, config: EngineConfig) -> None:
    """Raise TrtstreamError if a file is not the one that was built."""
    for name, expected in config.files.items():
        if file_sha256(folder / name) != expected:
            raise TrtstreamError(f"{folder / name} is damaged (its SHA-256 is not config.json's); rebuild the engine")


def link_or_copy(source: str, target: str) -> None:
    """A copy function for `shutil.copytree` that takes no space where the file system has hard links."""
    try:
        os.link(os.path.realpath(source), target)  # the target of a symbolic link, not the link
    except OSError:
        shutil.copyfile(source, target)


def directory_bytes(folder: Path) -> int:
    """Size of all files under ``folder``."""
    return sum(os.path.getsize(path) for path in folder.rglob("*") if path.is_file())


def engine_memory(folder: Path, config: EngineConfig) -> EngineMemory:
    """The memory that an engine takes, without an estimate of its workspace."""
    # A TensorRT plan holds kernels too, a few MB.
    files = [*folder.rglob("rank*.safetensors"), *folder.glob(ENGINE)]
    return EngineMemory(
        weights=sum(path.stat().st_size for path in files),
        kv_cache_per_session=kv_bytes_per_session(config.pretrained_config, config.build_config, config.target),
        sessions=config.build_config.max_batch_size,
        workspace=None,
    )
