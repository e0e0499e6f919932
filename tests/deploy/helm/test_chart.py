"""The Helm chart: everything that it renders is valid and fits together, and wrong values are refused by name."""

from __future__ import annotations

import json
import shutil
from functools import cache
from itertools import product
from pathlib import Path

import kubernetes_validate.utils as kubernetes
import pytest
import yaml

from tests.deploy.helm.chart import CHART, Chart, Object, find, pod_of
from tests.deploy.helm.rules import problems

pytestmark = pytest.mark.process

VALUES = ("cpu", "gpu", "init")
VERSIONS = tuple(f"1.{minor}" for minor in range(30, 37))
AFFINITIES = ("envoy-gateway", "istio", "haproxy", "nginx")
# Kinds of controllers: Kubernetes itself has no schema of them.
CUSTOM = {
    "Backend",
    "BackendTrafficPolicy",
    "DestinationRule",
    "GRPCRoute",
    "Gateway",
    "HTTPRoute",
    "PodMonitor",
    "ServiceMonitor",
    "UpstreamSettingsPolicy",
}


@pytest.fixture(autouse=True)
def schemas_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Definitions of a version are megabytes of JSON, which are the same for all objects."""
    monkeypatch.setattr(kubernetes, "schema_contents", SCHEMAS)


SCHEMAS = cache(kubernetes.schema_contents)


def check_schemas(objects: list[Object], version: str) -> None:
    for each in objects:
        if each["kind"] not in CUSTOM:
            kubernetes.validate(each, version, strict=True)


@pytest.mark.parametrize("values", VALUES)
def test_helm_lints_it(chart: Chart, values: str) -> None:
    done = chart.run("lint", ".", "--strict", "-f", f"ci/{values}-values.yaml")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("values", VALUES)
def test_what_is_rendered_is_valid_and_fits_together(chart: Chart, keys: Path, values: str) -> None:
    objects = chart.render(values)
    for version in (VERSIONS[0], VERSIONS[-1]):
        check_schemas(objects, version)
    assert problems(objects, keys) == []


@pytest.mark.parametrize("by", AFFINITIES)
def test_each_affinity_is_valid_and_fits_together(chart: Chart, keys: Path, by: str) -> None:
    objects = chart.render("init", f"affinity.by={by}", "affinity.className=class")
    check_schemas(objects, VERSIONS[0])
    assert problems(objects, keys) == []
    assert "x-session-id" in str(objects).replace("_", "-")


@pytest.mark.slow
def test_all_combinations_are_valid_and_fit_together(chart: Chart, keys: Path) -> None:
    kinds, seen = set(), set()
    for by, gateways, snapshots, monitor, scaled in product(
        ("none", *AFFINITIES), ("true", "false"), ("none", "emptyDir", "claim"), ("pod", "service"), ("true", "false")
    ):
        settings = {
            "affinity.by": by,
            "gateways.enabled": gateways,
            "sessions.snapshots.volume": snapshots,
            "metrics.monitor": monitor,
            "servers.autoscaling.enabled": scaled,
        }
        objects = chart.render("gpu", *(f"{key}={value}" for key, value in settings.items()))
        kinds |= {each["kind"] for each in objects}
        new = {json.dumps(each, sort_keys=True): each for each in objects}
        for version in VERSIONS:
            check_schemas([new[text] for text in new.keys() - seen], version)
        seen |= new.keys()
        assert problems(objects, keys) == [], settings
    assert kinds >= CUSTOM


def test_the_schemas_see_an_unknown_field_and_a_version_that_lacks_one(chart: Chart) -> None:
    server = find(chart.render("cpu"), "StatefulSet")
    check_schemas([server], "1.30")
    with pytest.raises(kubernetes.ValidationError, match="sleep"):
        check_schemas([server], "1.28")
    server["spec"]["replica"] = 2
    with pytest.raises(kubernetes.ValidationError, match="replica"):
        check_schemas([server], "1.36")


def test_a_server_gets_what_the_values_say(chart: Chart) -> None:
    server = find(chart.render("gpu", "servers.drain.timeout=90"), "StatefulSet")
    spec = pod_of(server)["spec"]
    container = spec["containers"][0]
    assert container["args"][:2] == ["serve", "/model/llama-3.1-8b"]
    assert container["args"][-2:] == ["--max-itl-ms", "100"]
    assert container["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 1}
    assert container["resources"]["requests"] == {"cpu": "4", "memory": "32Gi"}
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["terminationGracePeriodSeconds"] == 5 + 90 + 30
    (store,) = (each for each in container["env"] if each["name"] == "TRTSTREAM_SESSION_STORE")
    assert store["valueFrom"] == {"secretKeyRef": {"name": "trtstream-store", "key": "url"}}
    assert server["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "100Gi"


@pytest.mark.parametrize("monitor", ["pod", "service"])
def test_whoever_reads_metrics_reaches_servers_and_gateways(chart: Chart, monitor: str) -> None:
    settings = ("networkPolicy.gateways[0].podSelector.matchLabels.app=chat", f"metrics.monitor={monitor}")
    objects = chart.render("gpu", *settings)
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    for part, port in (("server", "metrics"), ("gateway", "openai")):
        policy = find(objects, "NetworkPolicy", f"chat-{part}")["spec"]
        assert any(prometheus in rule["from"] and {"port": port} in rule["ports"] for rule in policy["ingress"]), part
        spec = find(objects, f"{monitor.title()}Monitor", f"chat-{part}")["spec"]
        assert [end["port"] for end in spec.get("podMetricsEndpoints") or spec["endpoints"]] == [port]
    (gateway,) = find(objects, "NetworkPolicy", "chat-gateway")["spec"]["ingress"]
    assert len(gateway["from"]) == 2


def test_notes_say_what_is_missing(chart: Chart) -> None:
    done = chart.run("install", "chat", ".", "--dry-run=client", "-f", "ci/init-values.yaml")
    notes = done.stdout.partition("NOTES:")[2]
    assert "rollout status statefulset/chat-server" in notes, done.stderr
    assert "gateways.apiKeysSecret asks for keys" in notes
    assert "no session store" not in notes


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("servers.replica=3", "replica"),
        ("servers.replicas=-1", "/servers/replicas"),
        ("image.repository=", "/image/repository"),
        ("model.source=hub", "/model/source"),
        ("model.source=claim", "/model/claim"),
        ("model.path=/engine", "/model/path"),
        ("model.init.image=", "/model/init/image"),
        ("servers.drain.delay=0", "/servers/drain/delay"),
        ("servers.args={--grpc-port=9}", "/servers/args/0"),
        ("servers.maxUnavailable=0", "/servers/maxUnavailable"),
        ("servers.sharedMemory=64", "/servers/sharedMemory"),
        ("servers.autoscaling.enabled=true,servers.autoscaling.turnsQueued=0", "/servers/autoscaling/turnsQueued"),
        ("gateways.triton=envoy", "/gateways/triton"),
        ("sessions.storeSecret=", "/sessions/storeSecret"),
        ("sessions.snapshots.volume=disk", "/sessions/snapshots/volume"),
        ("affinity.by=traefik", "/affinity/by"),
        ("affinity.by=istio", "/affinity/className"),
        ("metrics.monitor=yes", "/metrics/monitor"),
        ("networkPolicy.from=all", "from"),
    ],
)
def test_wrong_values_are_refused_by_name(chart: Chart, setting: str, name: str) -> None:
    done = chart.run("template", "chat", ".", "-f", "ci/init-values.yaml", "--set", setting)
    assert done.returncode == 1
    assert f"'{name}'" in done.stderr


def test_values_and_schema_know_the_same_names() -> None:
    def names(schema: Object, path: str = "") -> set[str]:
        below = schema.get("properties", {}).items()
        return {f"{path}.{key}" for key, _ in below}.union(*(names(value, f"{path}.{key}") for key, value in below))

    def keys_of(values: object, path: str = "") -> set[str]:
        if not isinstance(values, dict) or path.endswith(".resources"):  # Kubernetes' own are below
            return set()
        return {f"{path}.{key}" for key in values}.union(
            *(keys_of(each, f"{path}.{key}") for key, each in values.items())
        )

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert keys_of(values) == names(json.loads((CHART / "values.schema.json").read_text()))


MUTATIONS = [
    ("servers.yaml", '{{- include "trtstream.lifecycle" . | nindent 10 }}', "", "it has no preStop"),
    ("gateways.yaml", '{{- include "trtstream.lifecycle" . | nindent 10 }}', "", "it has no preStop"),
    ("_helpers.tpl", ".Values.servers.drain.timeout 30", "0 30", "it is killed while it drains"),
    ("servers.yaml", "readinessProbe:", "x-readinessProbe:", "it has no readinessProbe"),
    ("servers.yaml", "livenessProbe:", "x-livenessProbe:", "it has no livenessProbe"),
    ("servers.yaml", "path: /ready", "path: /live", "its readinessProbe does not ask for turns"),
    ("servers.yaml", "containerPort: 8001", "containerPort: 8010", "the port grpc is 8010, and it listens on 8001"),
    ("servers.yaml", "(div $values.startTimeout 5)", "0", "its startupProbe gives up before serve does"),
    ("services.yaml", "targetPort: http", "targetPort: web", "no pod has the port web"),
    ("services.yaml", "appProtocol: kubernetes.io/h2c", "", "the port grpc has no appProtocol"),
    ("gateways.yaml", '"%s:8001"', '"%s:8002"', "--triton is chat:8002, where nothing is"),
    ("servers.yaml", "--host=0.0.0.0", "--host=127.0.0.1", "it listens on loopback"),
    ("servers.yaml", "--drain-timeout", "--drain-time", "trtstream serve refuses its options: No such option"),
    ("tests/smoke.yaml", "--url", "--triton", "trtstream smoke refuses its options: No such option"),
    ("_helpers.tpl", "readOnlyRootFilesystem: true", "", "server can write to its image"),
    ("_helpers.tpl", "runAsUser: 1000", "", "it may run as root"),
    ("servers.yaml", "mountPath: /tmp", "mountPath: /temp", "server has nowhere to write"),
    ("servers.yaml", "name: snapshots\n      spec", "name: caches\n      spec", "server mounts {'snapshots'}"),
    ("disruption.yaml", '(list "server" "gateway")', '(list "server")', "it has no disruption budget"),
    ("autoscaling.yaml", "trtstream_turns_queued", "trtstream_queue", "there is no gauge trtstream_queue"),
    ("autoscaling.yaml", "tier: engine", "tier: gpu", "trtstream_sessions has no {'tier': 'gpu'}"),
    ("networkpolicy.yaml", "- port: metrics", "- port: prometheus", "its pods have no such ports"),
    ("monitor.yaml", '"server" "metrics"', '"server" "prometheus"', "its pods have no such port"),
    ("monitor.yaml", 'list $ "gateway"', 'list $ "server"', "Deployment chat-gateway: its metrics are not scraped"),
    ("affinity.yaml", '"grpc" 8001', '"grpc" 9001', "it leads to chat:9001, where nothing is"),
]


@pytest.mark.parametrize(("file", "old", "new", "problem"), MUTATIONS)
def test_a_mistake_in_a_template_is_seen(
    chart: Chart, keys: Path, tmp_path: Path, file: str, old: str, new: str, problem: str
) -> None:
    folder = shutil.copytree(CHART, tmp_path / "chart")
    template = folder / "templates" / file
    text = template.read_text()
    assert old in text
    template.write_text(text.replace(old, new))
    found = problems(Chart(chart.helm, folder).render("gpu"), keys)
    assert any(problem in line for line in found), found
