"""API keys in a file: each belongs to a tenant, and the file has its hash alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fcntl import LOCK_EX, flock
from pathlib import Path

from trtstream.errors import TrtstreamError
from trtstream.runtime.validation import TENANT
from trtstream.typed_json import from_json

PREFIX = "sk-trt-"
KEY_BYTES = 32


@dataclass(frozen=True)
class ApiKey:
    """``id`` names a key of ``tenant``. ``hash`` is its SHA-256: a random key of 256 bits needs neither salt nor time.

    ``created`` is in seconds since 1970.
    """

    id: str
    tenant: str
    hash: str
    created: float


@dataclass(frozen=True)
class _Keys:
    keys: list[ApiKey]


def read_keys(path: Path) -> list[ApiKey]:
    """Raises TrtstreamError for a file that is not one of keys."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise TrtstreamError(f"the key file {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise TrtstreamError(f"the key file {path} is not JSON ({error}); see `trtstream gateway keys`") from None
    return from_json(_Keys, values, str(path)).keys


def add_key(path: Path, tenant: str) -> tuple[ApiKey, str]:
    """Add a key for ``tenant`` to the file, which is made if it does not exist. Returns it, and the secret itself."""
    if not tenant or not TENANT.fullmatch(tenant):
        raise TrtstreamError(f"the tenant is {tenant!r}; it has 1 to 64 letters, digits, '.', '_' and '-'")
    secret = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    key = ApiKey("key_" + secrets.token_hex(4), tenant, _hash(secret), time.time())
    with _changing(path) as keys:
        keys.append(key)
    return key, secret


def revoke_key(path: Path, key_id: str) -> None:
    """Take a key out of the file. Raises TrtstreamError if it has none of this id."""
    read_keys(path)
    with _changing(path) as keys:
        left = [key for key in keys if key.id != key_id]
        if len(left) == len(keys):
            raise TrtstreamError(f"{path} has no key {key_id!r}; see `trtstream gateway keys list`")
        keys[:] = left


@dataclass
class KeyFile:
    """The keys of a file, as it is now: a key that is added or revoked counts at once."""

    path: Path
    _keys: Sequence[ApiKey] = field(init=False)
    _version: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self._version = self._stat()
        self._keys = read_keys(self.path)

    def find(self, secret: str) -> ApiKey | None:
        """The key that ``secret`` is. Compares with all of them, in constant time."""
        version = self._stat()
        if version != self._version:
            self._keys, self._version = read_keys(self.path), version
        presented = _hash(secret)
        found = [key for key in self._keys if hmac.compare_digest(key.hash, presented)]
        return found[0] if found else None

    def _stat(self) -> tuple[int, int]:
        try:
            stat = self.path.stat()
        except OSError as error:
            raise TrtstreamError(f"the key file {self.path} cannot be read ({error.strerror})") from None
        return stat.st_mtime_ns, stat.st_ino


@contextmanager
def _changing(path: Path) -> Iterator[list[ApiKey]]:
    """The file's keys, of which the file has those that are left when the block ends, readable by its owner alone."""
    lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        flock(lock, LOCK_EX)
        keys = read_keys(path) if path.exists() else []
        yield keys
        new = path.with_name(path.name + ".new")
        with open(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
            json.dump({"keys": [asdict(key) for key in keys]}, file, indent=2)
        new.replace(path)
    finally:
        os.close(lock)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
