"""The engine directory on disk: config.json, the engine's files, the tokenizer. It is written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

from trtstream.checksum import file_sha256
from trtstream.errors import TrtstreamError, one_line
from trtstream.plugins.kv_cache import kv_bytes_per_session
from trtstream.settings import FORMAT_VERSION, BuildConfig, ModelConfig, check_against_model
from trtstream.targets import TARGETS
from trtstream.typed_json import from_json, shown

CONFIG = "config.json"
TOKENIZER = "tokenizer"
WEIGHTS = "rank0.safetensors"
KERNEL = "rank0.so"
ENGINE = "rank0.engine"
KEYS_OF_ENGINES = ("version", "build_config", "toolchain")
MAX_CONFIG_BYTES = 1 << 24


class _Sha256:
    """The form of a SHA-256, for `from_json`."""

    def __contains__(self, value: str) -> bool:
        return len(value) == 64 and set(value) <= set("0123456789abcdef")

    def __str__(self) -> str:
        return "of 64 hexadecimal digits"


@dataclass(frozen=True)
class EngineConfig:
    """An engine's config.json.

    ``toolchain`` names the software that built it and its needs (for ``cpu``: the versions of trtstream and torch, and
    the CPU's instruction sets); ``files`` maps each file's path to its SHA-256. ``fingerprint`` is a digest of the
    checkpoint and tokenizer that it was built from: engines with the same one can continue the same sessions. On disk
    there are ``version`` and ``checksum`` (`config_checksum`) too.
    """

    target: str
    pretrained_config: ModelConfig
    build_config: BuildConfig
    toolchain: dict[str, str | list[str]]
    fingerprint: Annotated[str, _Sha256()]
    files: dict[str, Annotated[str, _Sha256()]]

    def to_dict(self) -> dict[str, Any]:
        values = {
            "version": FORMAT_VERSION,
            "target": self.target,
            "pretrained_config": self.pretrained_config.to_dict(),
            "build_config": self.build_config.to_dict(),
            "toolchain": self.toolchain,
            "fingerprint": self.fingerprint,
            "files": self.files,
        }
        return {**values, "checksum": config_checksum(values)}

    def validate(self) -> None:
        """Raise TrtstreamError if the values cannot describe an engine."""
        self.build_config.validate(self.target)
        self.pretrained_config.validate()
        check_against_model(self.build_config, self.pretrained_config, force=True)
        for name in TARGETS[self.target].files:
            if name not in self.files:
                raise TrtstreamError(f"files lacks {name}, which an engine for {self.target} has")


def config_checksum(values: dict[str, Any]) -> str:
    """The SHA-256 of config.json's values without ``checksum``: of their JSON with sorted keys and without spaces."""
    covered = {key: value for key, value in values.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
    folder: Path, target: str, model: ModelConfig, build: BuildConfig, toolchain: dict[str, Any], fingerprint: str
) -> EngineConfig:
    """Write config.json over all the files that ``folder`` holds."""
    files = {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    config = EngineConfig(target, model, build, toolchain, fingerprint, files)
    (folder / CONFIG).write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    return config


def read_engine(folder: str | Path) -> EngineConfig:
    """An engine's config, every field checked, and its files there (not their contents: see `verify_files`)."""
    folder = Path(folder)
    path = folder / CONFIG
    values = _read_json(path) if os.path.lexists(path) else None
    if not isinstance(values, dict) or not set(KEYS_OF_ENGINES) <= set(values):
        raise TrtstreamError(f"{folder} is not an engine: {_what_it_is_instead(folder)}")
    version = values.pop("version")
    if version != FORMAT_VERSION:
        raise TrtstreamError(
            f"{folder} has engine format {shown(version)}, and this trtstream reads {FORMAT_VERSION}; "
            "rebuild the engine"
        )
    if values.pop("checksum", None) != config_checksum({"version": version, **values}):
        raise TrtstreamError(
            f"{path} was edited or is damaged (its checksum is not that of its text); rebuild the engine"
        )
    try:
        config = from_json(EngineConfig, values, str(path))
        config.validate()
    except TrtstreamError as error:
        raise TrtstreamError(f"{error}; rebuild the engine with this version") from None
    for name in (CONFIG, *config.files):
        _check_file(folder, name)
    _check_nothing_added(folder, config)
    return config


def _read_json(path: Path) -> Any:
    """A JSON file's value. Raises TrtstreamError for a special file, a huge one, two equal keys, and NaN."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("an object has the same key twice")
        return values

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number of JSON")

    try:
        if not path.is_file():
            raise ValueError("it is not a regular file")
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {MAX_CONFIG_BYTES:,} bytes")
        values = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=refuse)
        json.dumps(values)  # as deep as that, too
        return values
    except (OSError, ValueError, RecursionError) as error:
        raise TrtstreamError(f"{path} cannot be read ({one_line(error)}); rebuild the engine") from error


def _check_file(folder: Path, name: str) -> None:
    """Raise TrtstreamError unless ``name`` is a regular file inside ``folder``, where its links lead too."""
    path = folder / name
    try:
        real = Path(os.path.realpath(path, strict=True))
    except OSError:
        raise TrtstreamError(f"{folder} lacks {name}; rebuild the engine") from None
    if not real.is_relative_to(os.path.realpath(folder)):
        raise TrtstreamError(
            f"{path} leads out of the engine, to {real}; put the file itself there, or rebuild the engine"
        )
    if not real.is_file():
        raise TrtstreamError(f"{path} is not a regular file; rebuild the engine")


def _check_nothing_added(folder: Path, config: EngineConfig) -> None:
    """Raise TrtstreamError if the tokenizer's folder, of which transformers reads what it finds, has more files."""
    for parent, folders, names in os.walk(folder / TOKENIZER):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in (*names, *links):
            path = Path(parent, name)
            if path.relative_to(folder).as_posix() not in config.files:
                raise TrtstreamError(f"{path} is not among the engine's files; remove it, or rebuild the engine")


def is_engine(folder: Path) -> bool:
    """Whether ``folder`` is an engine's, perhaps a damaged one's or of another version."""
    path = folder / CONFIG
    try:
        if not path.is_file():  # a FIFO would wait for a writer
            return False
        with path.open(errors="replace") as file:
            text = file.read(MAX_CONFIG_BYTES)
    except OSError:
        return False
    return all(f'"{key}"' in text for key in KEYS_OF_ENGINES)


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
    """Raise TrtstreamError if a file is not the one that was built, or cannot be read."""
    for name, expected in config.files.items():
        try:
            checksum = file_sha256(folder / name)
        except OSError as error:
            raise TrtstreamError(f"{folder / name} cannot be read ({error.strerror}); rebuild the engine") from error
        if checksum != expected:
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
    files = [name for name in config.files if fnmatch(Path(name).name, "rank*.safetensors") or name == ENGINE]
    return EngineMemory(
        weights=sum((folder / name).stat().st_size for name in files),
        kv_cache_per_session=kv_bytes_per_session(config.pretrained_config, config.build_config, config.target),
        sessions=config.build_config.max_batch_size,
        workspace=None,
    )
