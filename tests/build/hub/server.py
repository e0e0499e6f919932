"""A Hugging Face hub on 127.0.0.1: the part of its HTTP API that huggingface_hub uses to download a repository.

Large files are answered as the hub does, by a redirect to another address, with the size and hash in ``X-Linked-*``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

MAIN, OLD = "a" * 40, "b" * 40  # commits
LARGE = (".safetensors", ".gguf", ".bin")


@dataclass
class Repository:
    """A repository: ``revisions`` maps a branch's name to its commit, ``commits`` a commit to its folder of files.

    Only tokens in ``readers`` see a private one, and only theirs get files of a gated one.
    """

    revisions: dict[str, str]
    commits: dict[str, Path]
    private: bool = False
    gated: bool = False
    readers: tuple[str, ...] = ()


@dataclass
class Hub:
    """What the hub has, how it fails, and which requests it got."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: tuple[str, ...] = ("hf_reader", "hf_stranger")
    cut_after: int | None = None  # bytes of a large file after which its next download is cut, once
    sizes: dict[str, int] = field(default_factory=dict)  # sizes that the hub names instead of a file's own
    down: bool = False
    url: str = ""
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)

    def fetched(self) -> list[str]:
        """The names of the files whose contents were asked for."""
        return sorted({Path(line).name for line in self.requests if re.match(r"GET (.*/resolve/|/blobs/)", line)})


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        try:
            if self.hub.down:
                raise _Refusal(503, "", "Service Unavailable")
            if path.startswith("/api/models/"):
                self._json(self._api(path.removeprefix("/api/models/")))
            elif path.startswith("/blobs/"):  # the hub's large files are on other hosts, and want no token
                self._file(*self._find(path.removeprefix("/blobs/")))
            else:
                self._resolve(path.removeprefix("/"))
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message} if refusal.code else {}
            self._send(refusal.status, headers, json.dumps({"error": refusal.message}).encode())

    def _api(self, path: str) -> Any:
        """Metadata: ``OWNER/NAME/revision/REVISION`` or ``OWNER/NAME/tree/REVISION``."""
        name, what, revision = self._split(path)
        repository = self._visible(name)
        commit = self._commit(repository, revision)
        files = sorted(file for file in repository.commits[commit].rglob("*") if file.is_file())
        names = [str(file.relative_to(repository.commits[commit])) for file in files]
        if what == "revision":
            siblings = [{"rfilename": name} for name in names]
            return {"id": name, "modelId": name, "sha": commit, "private": repository.private, "siblings": siblings}
        return [self._tree_entry(name, file) for name, file in zip(names, files, strict=True)]

    def _tree_entry(self, name: str, file: Path) -> dict[str, Any]:
        size = self.hub.sizes.get(name, file.stat().st_size)
        entry: dict[str, Any] = {"type": "file", "path": name, "oid": _git_hash(file), "size": size}
        if file.suffix in LARGE:
            entry["lfs"] = {"oid": _sha256(file), "size": size, "pointerSize": 134}
        return entry

    def _resolve(self, path: str) -> None:
        """A file: ``OWNER/NAME/resolve/REVISION/FILE``."""
        name, _, rest = self._split(path)
        revision, _, file_name = rest.partition("/")
        repository = self._visible(name)
        if repository.gated and self._token() not in repository.readers:
            status = 401 if self._token() is None else 403
            raise _Refusal(status, "GatedRepo", f"Access to model {name} is restricted.")
        commit = self._commit(repository, revision)
        file = repository.commits[commit] / file_name
        if not file.is_file():
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit}
        if file.suffix in LARGE:
            other = self.hub.url.replace("127.0.0.1", "localhost")
            headers |= {
                "Location": f"{other}/blobs/{name}/blob/{commit}/{quote(file_name)}",
                "X-Linked-Size": str(self.hub.sizes.get(file_name, file.stat().st_size)),
                "X-Linked-ETag": f'"{_sha256(file)}"',
            }
            self._send(302, headers)
        else:
            self._file(file, {**headers, "ETag": f'"{_git_hash(file)}"'})

    def _find(self, path: str) -> tuple[Path, dict[str, str]]:
        name, _, rest = self._split(path)
        commit, _, file_name = rest.partition("/")
        file = self.hub.repositories[name].commits[commit] / file_name
        return file, {"ETag": f'"{_sha256(file)}"'}

    def _file(self, file: Path, headers: dict[str, str]) -> None:
        """Contents from the first byte that ``Range`` asks for."""
        body, wanted = file.read_bytes(), self.headers.get("Range")
        if wanted is not None:
            self.hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers |= {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            self._send(206, headers, body[start:])
        elif self.command == "GET" and self.hub.cut_after is not None and file.suffix in LARGE:
            cut, self.hub.cut_after = self.hub.cut_after, None
            self._send(200, headers, body[:cut], length=len(body))
            self.close_connection = True
        else:
            self._send(200, headers, body)

    def _visible(self, name: str) -> Repository:
        token = self._token()
        if token is not None and token not in self.hub.tokens:
            raise _Refusal(401, "", "Invalid credentials in Authorization header")
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and token not in repository.readers):
            raise _Refusal(401 if token is None else 404, "RepoNotFound", "Repository not found")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        return None if header is None else header.removeprefix("Bearer ")

    @staticmethod
    def _split(path: str) -> tuple[str, str, str]:
        if path.count("/") < 3:
            raise _Refusal(404, "", "Not Found")
        owner, name, what, rest = path.split("/", 3)
        return f"{owner}/{name}", what, rest

    def _json(self, value: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"", length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body) if length is None else length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@functools.cache
def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@functools.cache
def _git_hash(file: Path) -> str:
    contents = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()
