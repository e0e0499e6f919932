"""Checkpoints on the Hugging Face hub, which huggingface_hub fetches into its own cache."""

from __future__ import annotations

import glob
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from trtstream.errors import TrtstreamError
from trtstream.progress import Progress, progress_bar

INDEX = "model.safetensors.index.json"
# All that is read of a repository but its weights. Pickles (.bin, .pth) are never fetched.
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    INDEX,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def local_checkpoint(name: str, revision: str | None = None) -> Path:
    """The path of the checkpoint ``name``, fetched from the Hugging Face hub unless ``name`` is a path.

    ``name`` is a path, a repository id ``owner/name``, or a GGUF file of a repository, ``owner/name:FILE.gguf``. A path
    that exists is never looked up on the hub. ``revision`` is a branch, tag or commit of the repository.

    Raises TrtstreamError where the hub does not give the checkpoint, and where no family supports the repository's
    config, before any weights are fetched.
    """
    repository, colon, gguf = name.partition(":")
    if Path(name).exists() or not _is_repository_id(repository):
        if revision is not None:
            raise click.UsageError(f"--revision is for a repository on the Hugging Face hub, and {name} is a path")
        return Path(name)
    if colon and not gguf.lower().endswith(".gguf"):
        raise TrtstreamError(f"{repository} has no GGUF file {gguf!r}; name one that ends in .gguf")
    with _one_line_errors(repository, revision):
        if colon:
            path = _fetch_weights(repository, revision, [gguf]) / gguf
            if not path.is_file():
                raise TrtstreamError(f"{repository} has no GGUF file {gguf!r}; name one that it has")
            return path
        folder = Path(_snapshot(repository, revision, SMALL_FILES))
        weights = _weight_files(repository, folder)
        # A snapshot's folder has the name of its commit, so the weights are of the same one.
        folder = _fetch_weights(repository, folder.name, weights)
        if not (folder / weights[0]).is_file():
            raise TrtstreamError(
                f"{repository} has no {weights[0]}, and pickles (.bin) are not read; use a repository with safetensors"
            )
        return folder


def _is_repository_id(name: str) -> bool:
    """Whether ``name`` may be ``owner/name`` on the hub and does not look like a path."""
    if name.count("/") != 1 or name.lower().endswith(".gguf"):
        return False
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _weight_files(repository: str, folder: Path) -> list[str]:
    """The names of the weights that belong to the small files in ``folder``."""
    from trtstream.build.families import find_family
    from trtstream.build.huggingface_folder import SINGLE, read_config, read_index

    if not (folder / "config.json").is_file():
        raise TrtstreamError(f"{repository} has no config.json; a GGUF file in it is {repository}:FILE.gguf")
    config = read_config(folder)
    find_family(config).read_model(config)
    if not (folder / INDEX).is_file():
        return [SINGLE]
    shards = sorted(set(read_index(folder / INDEX).values()))
    found = _present(repository, folder, [SINGLE, *shards])
    if SINGLE in shards or SINGLE not in found:
        return shards
    if found != {SINGLE}:
        raise TrtstreamError(
            f"{repository} has both {SINGLE} and shards that {INDEX} names, which may be different weights; fetch the "
            f"right ones with `hf download {repository} --exclude FILE --local-dir FOLDER`, and give FOLDER"
        )
    return [SINGLE]


def _present(repository: str, folder: Path, files: Sequence[str]) -> set[str]:
    """Those of ``files`` that the repository has, or ``folder``, its snapshot, if the hub does not answer."""
    from huggingface_hub.errors import DryRunError

    try:
        return {file.filename for file in _snapshot(repository, folder.name, files, dry_run=True)}
    except DryRunError:
        return {file for file in files if (folder / file).is_file()}


def _fetch_weights(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder of the repository's snapshot, with those of ``files`` that it has."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import DryRunError

    size = 0
    with suppress(DryRunError):  # the hub does not answer, but the cache may have them
        planned = _snapshot(repository, revision, files, dry_run=True)
        size = sum(file.file_size or 0 for file in planned if file.will_download)
    if size > (free := _free_bytes(Path(HF_HUB_CACHE))):
        raise TrtstreamError(
            f"{repository} takes {size / 1e9:.2f} GB in {HF_HUB_CACHE}, and {free / 1e9:.2f} GB are free; free "
            "some, or set HF_HOME to a folder on a larger disk"
        )
    with progress_bar("Fetching MB") as progress:
        return Path(_snapshot(repository, revision, files, progress, size))


def _snapshot(
    repository: str,
    revision: str | None,
    files: Sequence[str],
    progress: Progress | None = None,
    size: int = 0,
    **options: Any,
) -> Any:
    """huggingface_hub's snapshot_download; ``progress`` gets the MB of ``size`` bytes that are done."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class ByteCounter(tqdm):
        """In place of the library's bars: shows nothing, and passes on the bytes written (not those of the network)."""

        def __init__(self, *args: Any, **bar: Any) -> None:
            self._passed_on = bar.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*args, **{**bar, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if progress is not None and self._passed_on and size:
                progress(int(self.n / 1e6), max(1, int(size / 1e6)))

    # It warns of files that a repository does not have, which most do not.
    logging.getLogger("huggingface_hub._snapshot_download").setLevel(logging.ERROR)
    patterns = [glob.escape(file) for file in files]  # they are names, whatever characters they have
    return snapshot_download(repository, revision=revision, allow_patterns=patterns, tqdm_class=ByteCounter, **options)


def _free_bytes(folder: Path) -> int:
    """Free space where ``folder`` is, or will be."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def _one_line_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Raise what huggingface_hub raises as TrtstreamError, which says what to do."""
    from huggingface_hub import constants, errors

    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    try:
        yield
    except errors.GatedRepoError:
        raise TrtstreamError(f"{repository} is gated: accept its terms at {hub}/{repository}, and {LOG_IN}") from None
    except errors.RepositoryNotFoundError:
        raise TrtstreamError(
            f"{repository} is neither a path here nor a repository that {hub} shows you; check the name, or, if it is "
            f"private, {LOG_IN}"
        ) from None
    except errors.RevisionNotFoundError:
        raise TrtstreamError(
            f"{repository} has no revision {revision!r}; give one of its branches, tags or commits"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        offline = isinstance(error.__cause__, errors.OfflineModeIsEnabled)
        raise TrtstreamError(
            f"{repository} is not a path here, it is not complete in {cache}, and {hub} cannot be asked for it "
            f"({'HF_HUB_OFFLINE is set' if offline else _reason(error)})"
        ) from error
    except errors.HfHubHTTPError as error:
        unauthorized = error.response.status_code in (401, 403)
        fix = f"your token is not accepted: {LOG_IN}" if unauthorized else "try again later"
        raise TrtstreamError(f"{hub} does not give {repository} ({_reason(error)}); {fix}") from error
    except OSError as error:
        if error.errno is None:
            raise TrtstreamError(f"{repository} cannot be fetched ({_reason(error)}); try again") from error
        raise TrtstreamError(
            f"{repository} cannot be kept in {cache} ({os.strerror(error.errno)}); free space there, or set HF_HOME "
            "to a folder on a larger disk"
        ) from error
    except (errors.HTTPError, RuntimeError, ValueError) as error:  # the network's, and those of hf_xet
        raise TrtstreamError(f"{repository} cannot be fetched ({_reason(error)}); try again") from error


def _reason(error: Exception) -> str:
    """What went wrong at first, in one line."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
