"""A real proxy in front of servers on this machine."""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from tests.deploy.server import free_ports

START_SECONDS = 60.0


class Proxy(AbstractContextManager["Proxy"], ABC):
    """Listens at ``url``, for the servers whose (gRPC port, HTTP port) ``servers`` are; `stop` and `start` at will."""

    source: ClassVar[Path]
    """The repository's configuration."""
    pings: ClassVar[bool]
    """Whether it ends the turns of a server that has stopped."""

    def __init__(self, folder: Path, servers: list[tuple[int, int]]) -> None:
        port, self._admin = free_ports(2)
        self.url = f"127.0.0.1:{port}"
        self._servers = servers
        self._config = folder / self.source.name
        self._log = self._config.with_suffix(".log")
        self._config.write_text(self._configuration(port))
        self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it answers questions."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log)
        give_up = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < give_up:
            try:
                if self._is_live():
                    return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise RuntimeError(self._log.read_text()[-1000:])

    def stop(self) -> None:
        """End it at once, and all its connections."""
        self._process.kill()
        self._process.wait()

    def wait_for(self, healthy: int) -> None:
        """Wait until ``healthy`` servers are healthy."""
        give_up = time.monotonic() + START_SECONDS
        while sum(host["healthy"] for host in self.hosts().values()) != healthy:
            if time.monotonic() > give_up:
                raise TimeoutError(f"{type(self).__name__} does not see {healthy} healthy servers: {self.hosts()}")
            time.sleep(0.05)

    @abstractmethod
    def hosts(self) -> dict[int, dict[str, Any]]:
        """What it knows of each server, by gRPC port: ``healthy``, and ``turns``, how many streams it has got."""

    @abstractmethod
    def _command(self) -> list[str | Path]:
        """What starts it with its configuration."""

    @abstractmethod
    def _configuration(self, port: int) -> str:
        """``source`` with other ports: ``port`` to listen at, ``_admin`` for questions, and ``_servers``."""

    @abstractmethod
    def _is_live(self) -> bool:
        """Whether it takes connections. Raises OSError where it does not answer."""
