"""What must be true of everything that the chart renders, beyond Kubernetes' own schemas."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from tests.deploy.helm.chart import Object, pod_of
from trtstream.cli import cli
from trtstream.runtime.metrics import METRICS, PREFIX

EXIT_SECONDS = 20
"""That a pod has at least once its turns are drained: to write snapshots, and Triton's own end."""


def problems(objects: Sequence[Object], keys: Path) -> list[str]:
    """What is wrong, in a line each. ``keys`` is a file of API keys, for options that want one."""
    pods = [pod_of(each) for each in objects if each["kind"] in ("StatefulSet", "Deployment", "Pod")]
    found: list[str] = []
    for each in objects:
        name = f"{each['kind']} {each['metadata']['name']}"
        found += [f"{name}: {problem}" for problem in _problems(each, objects, pods, keys)]
    return found


def _problems(each: Object, objects: Sequence[Object], pods: Sequence[Object], keys: Path) -> Iterator[str]:
    kind, spec = each["kind"], each["spec"]
    if kind in ("StatefulSet", "Deployment", "Pod"):
        claims = [claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])]
        yield from _pod_problems(pod_of(each), claims, objects, keys, stays=kind != "Pod")
    if kind in ("StatefulSet", "Deployment"):
        if not _selects(spec["selector"]["matchLabels"], [pod_of(each)]):
            yield "its selector does not match its pods"
        budgets = [other for other in objects if other["kind"] == "PodDisruptionBudget"]
        if not any(_selects(budget["spec"]["selector"]["matchLabels"], [pod_of(each)]) for budget in budgets):
            yield "it has no disruption budget"
    if kind in ("StatefulSet", "Deployment") and not _is_scraped(pod_of(each), objects):
        yield "its metrics are not scraped"
    if kind == "StatefulSet" and not _named(objects, "Service", spec["serviceName"]):
        yield f"there is no Service {spec['serviceName']}"
    if kind == "Service":
        selected = _selects(spec["selector"], pods)
        for port in spec["ports"]:
            if port["targetPort"] not in _ports(selected):
                yield f"no pod has the port {port['targetPort']}"
            if "appProtocol" not in port:
                yield f"the port {port['name']} has no appProtocol"
    if kind == "PodDisruptionBudget" and not _selects(spec["selector"]["matchLabels"], pods):
        yield "it selects no pod"
    if kind == "NetworkPolicy":
        selected = _selects(spec["podSelector"]["matchLabels"], pods)
        allowed = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
        if not selected or allowed - set(_ports(selected)):
            yield "its pods have no such ports"
    if kind == "HorizontalPodAutoscaler":
        yield from _scaling_problems(spec, objects)
    if kind == "PodMonitor":
        selected = _selects(spec["selector"]["matchLabels"], pods)
        if any(end["port"] not in _ports(selected) for end in spec["podMetricsEndpoints"]):
            yield "its pods have no such port"
    if kind == "ServiceMonitor":
        services = [other for other in objects if other["kind"] == "Service"]
        selected = _selects(spec["selector"]["matchLabels"], services)
        offered = {port["name"] for service in selected for port in service["spec"]["ports"]}
        if len(selected) != 1 or any(end["port"] not in offered for end in spec["endpoints"]):
            yield "it does not select one Service with its port"
    for reference in _backends(each):
        service = _named(objects, "Service", reference["name"])
        if not service or reference["port"] not in [port["port"] for port in service["spec"]["ports"]]:
            yield f"it leads to {reference['name']}:{reference['port']}, where nothing is"


def _pod_problems(
    pod: Object, claims: Sequence[str], objects: Sequence[Object], keys: Path, stays: bool
) -> Iterator[str]:
    spec = pod["spec"]
    security = spec.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "it may run as root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "it has no seccomp profile"
    if spec.get("automountServiceAccountToken", True):
        yield "it gets a token of the cluster"
    if spec.get("enableServiceLinks", True):
        yield "other Services' names become its variables"
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        name = container["name"]
        own = container.get("securityContext", {})
        if not own.get("readOnlyRootFilesystem"):
            yield f"{name} can write to its image"
        if own.get("allowPrivilegeEscalation", True) or own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{name} has privileges"
        if not re.search(r":[\w.-]+$", container["image"]) or container["image"].endswith(":latest"):
            yield f"{name}'s image has no version"
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
            yield f"{name} has no resources"
        mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
        if unknown := set(mounts.values()) - {*volumes, *claims}:
            yield f"{name} mounts {unknown}, which are no volumes"
        if "emptyDir" not in volumes.get(mounts.get("/tmp", ""), {}):
            yield f"{name} has nowhere to write"
    for container in spec["containers"]:
        parameters = yield from _command_problems(container, keys)
        if stays and parameters:
            yield from _service_problems(container, parameters, spec)
        for option in ("triton", "url"):
            host, _, port = parameters.get(option, "").partition(":")
            service = _named(objects, "Service", host)
            if host and (not service or int(port) not in [each["port"] for each in service["spec"]["ports"]]):
                yield f"--{option} is {host}:{port}, where nothing is"


def _command_problems(container: Object, keys: Path) -> Iterator[str]:
    """Returns the parameters as the real command gets them; {} if it refuses its options."""
    name, *arguments = [argument.replace("/etc/trtstream/keys.json", str(keys)) for argument in container["args"]]
    with click.Context(cli) as context:
        command = cli.get_command(context, name)
    if command is None:
        yield f"trtstream has no command {name}"
        return {}
    try:
        parameters: dict[str, Any] = command.make_context(name, arguments).params
    except click.UsageError as error:
        yield f"trtstream {name} refuses its options: {error.format_message()}"
        return {}
    return parameters


def _service_problems(container: Object, parameters: dict[str, Any], spec: Object) -> Iterator[str]:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    options = {"grpc": "grpc_port", "http": "http_port", "metrics": "metrics_port", "openai": "port"}
    for port, number in ports.items():
        if parameters[options[port]] != number:
            yield f"the port {port} is {number}, and it listens on {parameters[options[port]]}"
    if parameters["host"] != "0.0.0.0":
        yield "it listens on loopback"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container.get(probe, {})
        asked = asked.get("httpGet") or asked.get("tcpSocket")
        if not asked:
            yield f"it has no {probe}"
        elif asked["port"] not in ports:
            yield f"its {probe} asks the port {asked['port']}"
    if container.get("readinessProbe", {}).get("httpGet", {}).get("path") not in ("/ready", "/health"):
        yield "its readinessProbe does not ask for turns"
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if not sleep:
        yield "it has no preStop"
    if spec["terminationGracePeriodSeconds"] < sleep + parameters["drain_timeout"] + EXIT_SECONDS:
        yield "it is killed while it drains"
    if "start_timeout" in parameters:
        startup = container.get("startupProbe", {})
        if startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3) <= parameters["start_timeout"]:
            yield "its startupProbe gives up before serve does"


def _scaling_problems(spec: Object, objects: Sequence[Object]) -> Iterator[str]:
    target = _named(objects, spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
    if not target or "replicas" in target["spec"]:
        yield "it scales nothing, or against fixed replicas"
    for metric in spec["metrics"]:
        asked = metric["pods"]["metric"]
        ours = METRICS.get(asked["name"].removeprefix(PREFIX))
        labels = asked.get("selector", {}).get("matchLabels", {})
        if ours is None or ours.kind != "gauge":
            yield f"there is no gauge {asked['name']}"
        elif any(key != ours.label or value not in ours.values for key, value in labels.items()):
            yield f"{asked['name']} has no {labels}"


def _is_scraped(pod: Object, objects: Sequence[Object]) -> bool:
    """Whether a monitor finds the pod; true where there are no monitors at all."""
    monitors = [each for each in objects if each["kind"] in ("PodMonitor", "ServiceMonitor")]
    for monitor in monitors:
        labels = monitor["spec"]["selector"]["matchLabels"]
        services = _selects(labels, [each for each in objects if each["kind"] == "Service"])
        selectors = [labels] if monitor["kind"] == "PodMonitor" else [each["spec"]["selector"] for each in services]
        if any(_selects(selector, [pod]) for selector in selectors):
            return True
    return not monitors


def _backends(each: Object) -> Iterator[Object]:
    for rule in each["spec"].get("rules", []) if each["kind"] in ("GRPCRoute", "HTTPRoute") else []:
        yield from rule["backendRefs"]


def _selects(labels: dict[str, str], objects: Sequence[Object]) -> list[Object]:
    return [each for each in objects if labels.items() <= each["metadata"]["labels"].items()]


def _ports(pods: Sequence[Object]) -> list[str]:
    return [port["name"] for pod in pods for each in pod["spec"]["containers"] for port in each.get("ports", [])]


def _named(objects: Sequence[Object], kind: str, name: str) -> Object | None:
    return next((each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)), None)
