"""A real HAProxy with deploy/haproxy/haproxy.cfg, in front of servers on this machine."""

from __future__ import annotations

import csv
import io
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.deploy.server import free_ports

CONFIG = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"
START_SECONDS = 60.0


class HAProxy:
    """Listens at ``url``, for the servers whose (gRPC port, HTTP port) ``servers`` are; `stop` and `start` at will."""

    pings = False
    """Whether it ends the turns of a server that has stopped."""

    def __init__(self, folder: Path, servers: list[tuple[int, int]]) -> None:
        port, self._stats = free_ports(2)
        self.url = f"127.0.0.1:{port}"
        self._ports = {f"server{number}": grpc for number, (grpc, _) in enumerate(servers)}
        self._config, self._log = folder / "haproxy.cfg", folder / "haproxy.log"
        self._write(port, servers)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        binary = shutil.which("haproxy")
        if binary is None:
            raise FileNotFoundError("HAProxy is not installed")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([binary, "-db", "-f", self._config], stdout=log, stderr=log)
        give_up = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < give_up:
            try:
                self.hosts()
            except OSError:
                time.sleep(0.05)
            else:
                return
        self.stop()
        raise RuntimeError(self._log.read_text()[-1000:])

    def stop(self) -> None:
        """End it at once, and all its connections."""
        self._process.kill()
        self._process.wait()

    def hosts(self) -> dict[int, dict[str, Any]]:
        """What it knows of each server, by gRPC port: ``healthy``, and ``turns``, how many streams it has got."""
        with socket.create_connection(("127.0.0.1", self._stats), timeout=10) as asked:
            asked.sendall(b"show stat\n")
            answer = b"".join(iter(lambda: asked.recv(1 << 16), b"")).decode()
        rows = csv.DictReader(io.StringIO(answer.removeprefix("# ")))
        servers = {row["svname"]: row for row in rows if row["svname"] in self._ports}
        return {
            port: {"healthy": _is_healthy(servers[name]), "turns": int(servers[name]["stot"])}
            for name, port in self._ports.items()
        }

    def wait_for(self, healthy: int) -> None:
        """Wait until ``healthy`` servers are healthy."""
        give_up = time.monotonic() + START_SECONDS
        while sum(host["healthy"] for host in self.hosts().values()) != healthy:
            if time.monotonic() > give_up:
                raise TimeoutError(f"HAProxy does not see {healthy} healthy servers: {self.hosts()}")
            time.sleep(0.05)

    def _write(self, port: int, servers: list[tuple[int, int]]) -> None:
        """The repository's configuration with other ports, and a socket for questions."""
        text = re.sub(r"^    server .*\n", "", CONFIG.read_text(), flags=re.MULTILINE)
        text = text.replace("127.0.0.1:8001", f"127.0.0.1:{port}")
        text = text.replace("global\n", f"global\n    stats socket 127.0.0.1:{self._stats}\n")
        lines = [f"    server server{n} 127.0.0.1:{grpc} port {http}\n" for n, (grpc, http) in enumerate(servers)]
        self._config.write_text(text + "".join(lines))


def _is_healthy(server: dict[str, str]) -> bool:
    """Before its first check a server is up too."""
    return server["status"].startswith("UP") and "L7OK" in server["check_status"]
