"""A real HAProxy with deploy/haproxy/haproxy.cfg, in front of servers on this machine."""

from __future__ import annotations

import csv
import io
import re
import shutil
import socket
from pathlib import Path
from typing import Any

from tests.deploy.proxy import Proxy


class HAProxy(Proxy):
    source = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"
    pings = False

    def hosts(self) -> dict[int, dict[str, Any]]:
        with socket.create_connection(("127.0.0.1", self._admin), timeout=10) as asked:
            asked.sendall(b"show stat\n")
            answer = b"".join(iter(lambda: asked.recv(1 << 16), b"")).decode()
        rows = {row["svname"]: row for row in csv.DictReader(io.StringIO(answer.removeprefix("# ")))}
        return {
            grpc: {"healthy": _is_healthy(rows[f"server{number}"]), "turns": int(rows[f"server{number}"]["stot"])}
            for number, (grpc, _) in enumerate(self._servers)
        }

    def _command(self) -> list[str | Path]:
        binary = shutil.which("haproxy")
        if binary is None:
            raise FileNotFoundError("HAProxy is not installed")
        return [binary, "-db", "-f", self._config]

    def _is_live(self) -> bool:
        return bool(self.hosts())

    def _configuration(self, port: int) -> str:
        """With a socket for questions too."""
        text = re.sub(r"^    server .*\n", "", self.source.read_text(), flags=re.MULTILINE)
        text = text.replace("127.0.0.1:8001", f"127.0.0.1:{port}")
        text = text.replace("global\n", f"global\n    stats socket 127.0.0.1:{self._admin}\n")
        lines = [f"    server server{n} 127.0.0.1:{grpc} port {http}\n" for n, (grpc, http) in enumerate(self._servers)]
        return text + "".join(lines)


def _is_healthy(server: dict[str, str]) -> bool:
    """Before its first check a server is up too."""
    return server["status"].startswith("UP") and "L7OK" in server["check_status"]
