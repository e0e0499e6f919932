"""The configurations of proxies: the proxies themselves take them, and what a fleet rests on is in them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy import envoy
from trtstream.deploy.contract import SESSION_HEADER, routing_headers

DEPLOY = Path(__file__).parents[2] / "deploy"
HAPROXY = DEPLOY / "haproxy/haproxy.cfg"


@pytest.mark.parametrize("config", [envoy.CONFIG, DEPLOY / "docker/envoy.yaml"], ids=["loopback", "compose"])
def test_envoy_takes_its_configuration(config: Path) -> None:
    command = [envoy.binary(), "--mode", "validate", "-c", config]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed")
def test_haproxy_takes_its_configuration() -> None:
    done = subprocess.run(["haproxy", "-c", "-f", HAPROXY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_both_route_by_the_header_that_clients_send_to_the_same_servers() -> None:
    (cluster,) = yaml.safe_load(envoy.CONFIG.read_text())["static_resources"]["clusters"]
    servers = [
        (
            one["endpoint"]["address"]["socket_address"]["port_value"],
            one["endpoint"]["health_check_config"]["port_value"],
        )
        for one in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    ]
    lines = [line.split() for line in HAPROXY.read_text().splitlines() if line.split()[:1] == ["server"]]
    assert [(int(line[2].split(":")[1]), int(line[4])) for line in lines] == servers
    assert f"header_name: {SESSION_HEADER}" in envoy.CONFIG.read_text()
    assert f"balance hdr({SESSION_HEADER})" in HAPROXY.read_text()


def test_a_header_keeps_a_conversations_turns_together_and_its_key_to_itself() -> None:
    headers = [routing_headers(session) for session in ("größe\n", "größe\n", "other", "")]
    assert headers[0] == headers[1] != headers[2]
    assert headers[3] == {}
    assert all(value.isascii() and value.isalnum() for value in headers[0].values())
    assert "größe" not in str(headers)
