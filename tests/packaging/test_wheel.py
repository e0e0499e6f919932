"""The wheel is the project: nothing missing, nothing besides, and it works where there is no checkout."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

from tests.checkpoints import write_checkpoint
from tests.packaging.release import build_wheel, run_outside

pytestmark = pytest.mark.process

ROOMS = ("build/", "plugins/", "deploy/", "model_repo/")
# What is for other programs than Python, and for a checkout.
NOT_PACKAGED = tuple(
    f"deploy/{name}" for name in ("compose.yaml", "docker/", "envoy/", "haproxy/", "helm/", "monitoring/")
)

IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys
import trtstream
names = [module.name for module in pkgutil.walk_packages(trtstream.__path__, "trtstream.")]
# Importing the last one runs it.
modules = [trtstream, *(importlib.import_module(name) for name in names if name != "trtstream.__main__")]
print(json.dumps([module.__file__ for module in modules]))
"""


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and this one's packages, but not its trtstream, which is the checkout.

    The packages come as a folder on the path, in which .pth files, and so editable installs, have no effect.
    """
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site_packages(environment) / "packages.pth").write_text(sysconfig.get_path("purelib"))
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--ignore-installed", str(wheel)], check=True)
    return environment


def site_packages(environment: Path) -> Path:
    return next((environment / "lib").glob("python*/site-packages"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path, project_files: list[str]) -> None:
    links = {"trtstream/" + room.rstrip("/") for room in ROOMS}
    expected = {
        "trtstream/" + name for name in project_files if name.startswith(ROOMS) and not name.startswith(NOT_PACKAGED)
    }
    expected |= {name for name in project_files if name.startswith("trtstream/")} - links
    assert {name for name in contents(wheel) if ".dist-info/" not in name} == expected
    kinds = {Path(name).suffix for name in expected} | {Path(name).name for name in expected}
    assert {".py", ".cpp", ".pbtxt", "py.typed"} <= kinds


@pytest.mark.slow
def test_an_unpacked_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path, filter="data")
    assert not [name for name in names if "__pycache__" in name or name.split("/")[1:2] in (["tests"], ["benchmarks"])]
    unpacked = tmp_path / names[0].split("/")[0]
    assert contents(build_wheel(unpacked, tmp_path)) == contents(wheel)


def metadata_of(wheel: Path) -> Message:
    return message_from_bytes(next(data for name, data in contents(wheel).items() if name.endswith("/METADATA")))


def test_the_metadata_names_what_an_index_shows(wheel: Path) -> None:
    metadata = metadata_of(wheel)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"Homepage", "Changelog", "Issues"} <= {url.split(",")[0] for url in metadata.get_all("Project-URL", [])}
    features = {"client", "server", "gateway", "postgres", "gguf", "bench"}
    extras = features | {"tensorrt-rtx", "tensorrt", "compare", "dev"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras


def test_every_package_that_is_imported_is_required(wheel: Path) -> None:
    """None comes only by way of another package's requirements."""
    graph = grimp.build_graph(
        "trtstream", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )
    external = {name for name in graph.modules if graph.is_module_squashed(name)} - sys.stdlib_module_names
    requirements = [line for line in metadata_of(wheel).get_all("Requires-Dist", []) if 'extra == "dev"' not in line]
    required = {normalized(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}
    distributions = packages_distributions()
    missing = {name for name in external if not required & set(map(normalized, distributions.get(name, [name])))}
    # torch's builds for CUDA bring the Triton language.
    assert missing == {"triton"}


def normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_every_module_of_the_wheel_is_imported(environment: Path, wheel: Path, tmp_path: Path) -> None:
    imported = run_outside(environment, tmp_path, "python", "-c", IMPORT_EVERYTHING)
    modules = {
        name for name in contents(wheel) if name.endswith(".py") and not name.startswith("trtstream/model_repo/")
    }
    where = site_packages(environment).resolve()
    assert {str(where / name) for name in modules} == {*json.loads(imported), str(where / "trtstream/__main__.py")}


@pytest.mark.slow
def test_the_wheel_builds_inspects_and_packages(environment: Path, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-gqa")
    build = ["build", checkpoint, "--output", "engine", "--target", "cpu", "--max-attention-window", 32]
    run_outside(environment, tmp_path, "trtstream", *build)
    assert "32" in run_outside(environment, tmp_path, "trtstream", "inspect", "engine")
    run_outside(environment, tmp_path, "trtstream", "package", "engine", "--output", "repository")
    assert (tmp_path / "repository/trtstream/config.pbtxt").is_file()
    assert (tmp_path / "repository/trtstream/1/model.py").is_file()
