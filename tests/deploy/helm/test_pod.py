"""Servers and gateways run as the chart's pods have them: another user, a read-only root, and the pods' volumes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.command_line import run_in_process
from tests.deploy.helm.chart import Chart, Object, find, pod_of
from tests.deploy.server import Server
from tests.packaging.release import ROOT

pytestmark = pytest.mark.triton

FREE_PORTS = ("--grpc-port=0", "--http-port=0", "--metrics-port=0")
# Everything under /tmp that the server reads keeps its path, below the pod's own /tmp.
KEEP = Path("/media")


def mount_script(spec: Object, readable: list[Path]) -> str:
    """Shell commands that make this machine, in a namespace of mounts, what the pod's container sees."""
    container = spec["containers"][0]
    volumes = {volume["name"]: volume["emptyDir"] for volume in spec["volumes"]}
    # An image's /tmp can be written to by nobody, as the rest of it.
    lines = [f"mount --bind /tmp {KEEP}", "mount -o remount,bind,ro /", "mount -t tmpfs -o mode=755 tmpfs /tmp"]
    for mount in container["volumeMounts"]:
        size = volumes[mount["name"]].get("sizeLimit", "64Mi").removesuffix("i")
        lines.append(f"mount -t tmpfs -o mode=1777,size={size} tmpfs {mount['mountPath']}")
    for path in (path for path in readable if path.is_relative_to("/tmp")):
        kept = KEEP / path.relative_to("/tmp")
        lines.append(f"mkdir -p {path} && mount --bind -o ro {kept} {path} && mount -o remount,bind,ro {path}")
    user = spec["securityContext"]["runAsUser"]
    # Reading everything is for this machine's Python alone, which is in root's home; an image's is not.
    reading = (
        "--inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search --bounding-set=-all,+dac_read_search"
    )
    environment = shlex.join(f"{each['name']}={each['value']}" for each in container["env"] if "value" in each)
    lines.append(f'exec env {environment} setpriv --reuid={user} --regid={user} --clear-groups {reading} "$@"')
    return " && ".join(lines)


@contextmanager
def running(spec: Object, arguments: list[str], engine: Path, log: Path) -> Iterator[subprocess.Popen[str]]:
    """The pod's ``trtstream``, with these arguments."""
    script = mount_script(spec, [engine, ROOT, Path(sys.prefix)])
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-m", "trtstream", *arguments]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd="/", env=environment
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()


def ready_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def status_of(url: str) -> int:
    with urllib.request.urlopen(url) as answer:
        return int(answer.status)


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    tried = ["unshare", "-m", "sh", "-c", "mount --bind /tmp /media && setpriv --reuid=1000 true"]
    if subprocess.run(tried, capture_output=True).returncode:
        pytest.skip("needs a namespace of mounts and setpriv")


@pytest.mark.slow
def test_servers_and_gateways_run_as_their_pods_have_them(chart: Chart, engine: Path, tmp_path: Path) -> None:
    objects = chart.render("cpu", f"model.path={engine}", "gateways.enabled=true")
    spec = pod_of(find(objects, "StatefulSet"))["spec"]
    container = spec["containers"][0]
    log = tmp_path / "server"
    with running(spec, [*container["args"], *FREE_PORTS], engine, log) as process:
        server = Server(process, log, ready_line(process))
        port = server.http_url.rpartition(":")[2]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert status_of(f"http://127.0.0.1:{port}{container[probe]['httpGet']['path']}") == 200
        assert "Uid:\t1000\t1000\t1000\t1000" in Path(f"/proc/{process.pid}/status").read_text()

        def with_url(arguments: list[str]) -> list[str]:
            return [argument.replace("chat:8001", server.grpc_url) for argument in arguments]

        done = run_in_process(*with_url(find(objects, "Pod")["spec"]["containers"][0]["args"]))
        assert done.returncode == 0, done.stdout + done.stderr
        spec = pod_of(find(objects, "Deployment"))["spec"]
        container = spec["containers"][0]
        log = tmp_path / "gateway"
        with running(spec, [*with_url(container["args"]), "--port=0"], engine, log) as gateway:
            found = re.match(r"ready: openai=\S+:(\d+) ", ready_line(gateway))
            assert found, log.read_text()
            assert status_of(f"http://127.0.0.1:{found[1]}{container['readinessProbe']['httpGet']['path']}") == 200
        process.terminate()
        assert process.wait(60) == 0, server.log.read_text()


def test_a_pod_without_its_temporary_folder_is_seen(chart: Chart, engine: Path, tmp_path: Path) -> None:
    spec = pod_of(find(chart.render("cpu", f"model.path={engine}"), "StatefulSet"))["spec"]
    container = spec["containers"][0]
    container["volumeMounts"] = [each for each in container["volumeMounts"] if each["mountPath"] != "/tmp"]
    with running(spec, [*container["args"], *FREE_PORTS], engine, tmp_path / "log") as process:
        assert ready_line(process) == ""
        assert process.wait(60) == 1
    assert "No usable temporary directory" in (tmp_path / "log").read_text()
