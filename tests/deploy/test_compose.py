"""compose.yaml and what it mounts: the parts fit together, and commands and metrics are those that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.packaging.release import ROOT
from trtstream.cli import cli
from trtstream.runtime.metrics import METRICS, PREFIX

DEPLOY = ROOT / "deploy"
Object = dict[str, Any]


@pytest.fixture(scope="module")
def compose() -> Object:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def ours(compose: Object) -> dict[str, Object]:
    """The services that run trtstream, by name."""
    return {name: each for name, each in compose["services"].items() if each["image"].startswith("trtstream")}


def parameters(service: Object) -> Object:
    """As the real command gets them. Raises click.UsageError if it refuses its options."""
    name, *arguments = service["command"]
    with click.Context(cli) as context:
        command = cli.get_command(context, name)
    assert command, name
    return command.make_context(name, arguments).params


def test_the_commands_are_those_of_trtstream(compose: Object) -> None:
    options = {name: parameters(each) for name, each in ours(compose).items()}
    assert set(options) == {"server-1", "server-2", "gateway"}
    for name, each in options.items():
        assert each["host"] == "0.0.0.0"
        grace = int(compose["services"][name]["stop_grace_period"].removesuffix("s"))
        assert grace >= each["drain_delay"] + each["drain_timeout"] + 20, name
    host, port = options["gateway"]["triton"].split(":")
    assert f"127.0.0.1:8001:{port}" in compose["services"][host]["ports"]
    with pytest.raises(click.UsageError, match="--tritons"):
        parameters({"command": ["gateway", "--tritons", "envoy:8001"]})


def test_its_parts_fit_together(compose: Object) -> None:
    mounted = set()
    for name, service in compose["services"].items():
        assert set(service.get("depends_on", [])) <= set(compose["services"]), name
        for volume in service.get("volumes", []):
            source = volume.rsplit(":", volume.endswith(":ro") + 1)[0]
            if source.startswith("./"):
                assert (DEPLOY / source).is_file(), source
                mounted.add((DEPLOY / source).resolve())
            else:
                assert source in compose["volumes"] or source.startswith("${ENGINE:?"), source
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is open to others"
        build = service.get("build")
        assert not build or (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert mounted >= set((DEPLOY / "monitoring").iterdir())
    for service in ours(compose).values():
        assert service["read_only"]
        assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]


def test_proxy_and_prometheus_know_the_servers(compose: Object) -> None:
    servers = {name for name in ours(compose) if name.startswith("server-")}
    (cluster,) = yaml.safe_load((DEPLOY / "docker" / "envoy.yaml").read_text())["static_resources"]["clusters"]
    (group,) = cluster["load_assignment"]["endpoints"]
    endpoints = [each["endpoint"] for each in group["lb_endpoints"]]
    addresses = [each["address"]["socket_address"] for each in endpoints]
    default = parameters(compose["services"]["server-1"])
    assert {each["address"] for each in addresses} == servers
    assert {each["port_value"] for each in addresses} == {default["grpc_port"]}
    assert {each["health_check_config"]["port_value"] for each in endpoints} == {default["http_port"]}
    (job,) = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yaml").read_text())["scrape_configs"]
    gateway = f"gateway:{parameters(compose['services']['gateway'])['port']}"
    targets = {gateway, *(f"{name}:{default['metrics_port']}" for name in servers)}
    assert set(job["static_configs"][0]["targets"]) == targets


def test_its_envoy_is_that_of_one_machine_but_for_addresses() -> None:
    def without_addresses(path: Path) -> Object:
        config = yaml.safe_load(path.read_text())["static_resources"]
        del config["listeners"][0]["address"], config["clusters"][0]["load_assignment"]["endpoints"]
        return config

    assert without_addresses(DEPLOY / "docker" / "envoy.yaml") == without_addresses(DEPLOY / "envoy" / "envoy.yaml")


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    dashboard = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())
    shown = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            (name,) = re.findall(rf"{PREFIX}(\w+)", target["expr"])
            metric = METRICS[name.removesuffix("_bucket")]
            assert name.endswith("_bucket") == (metric.kind == "histogram"), target["expr"]
            assert ("rate(" in target["expr"]) == (metric.kind != "gauge" and name != "restarts_total"), target["expr"]
            known = {"model", "instance", "le", metric.label} - {""}
            (groups,) = re.findall(r"by \(([\w, ]+)\)", target["expr"]) or [""]
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert {*filter(None, groups.split(", ")), *labels} <= known, target["expr"]
            shown.add(name.removesuffix("_bucket"))
    assert shown == set(METRICS)
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_the_dashboard_is_what_grafana_is_given(compose: Object) -> None:
    volumes = compose["services"]["grafana"]["volumes"]
    inside = {Path(each.split(":")[0]).name: Path(each.split(":")[1]) for each in volumes}
    (provider,) = yaml.safe_load((DEPLOY / "monitoring" / "dashboards.yaml").read_text())["providers"]
    assert inside["dashboard.json"].parent == Path(provider["options"]["path"])
    (source,) = yaml.safe_load((DEPLOY / "monitoring" / "datasource.yaml").read_text())["datasources"]
    dashboard = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
