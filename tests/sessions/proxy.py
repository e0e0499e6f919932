"""A proxy in front of PostgreSQL that fails as networks do."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.engine import make_url


class Proxy:
    """In front of PostgreSQL's socket in ``folder``; it listens in the folder ``name`` in there.

    ``cuts`` COMMITs are answered with the connection's end: before they reach the server, or if it ``forwards`` them,
    in place of its answer. While it ``swallows``, nothing gets through, and no connection ends; if it ``hangs``, that
    begins with the next COMMIT.
    """

    def __init__(self, folder: Path, name: str = "proxy", port: int = 5432) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.cuts = 0
        self.forwards = self.swallows = self.hangs = False
        self._real = str(folder / f".s.PGSQL.{port}")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.folder / f".s.PGSQL.{port}"))
        listener.listen()
        self._ends = [listener]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def url(self, url: str) -> str:
        """The URL of a database of the server, through the proxy."""
        return make_url(url).update_query_dict({"host": str(self.folder)}).render_as_string()

    def close(self) -> None:
        for end in self._ends:
            _shut(end)
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._ends[0].accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            self._ends += [client, server]
            server.connect(self._real)
            self._start(self._pump, server, client)
            self._start(self._pump, client, server)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.swallows |= self.hangs and b"COMMIT\0" in data
                if self.swallows:
                    continue
                if self.cuts and b"COMMIT\0" in data:
                    self.cuts -= 1
                    _shut(source)
                    if self.forwards:
                        target.sendall(data)
                        time.sleep(0.2)
                    break
                target.sendall(data)
        _shut(source)
        _shut(target)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
