"""Finds a real Triton Inference Server on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from trtstream.errors import TrtstreamError

CONTAINER_BINARY = "/opt/tritonserver/bin/tritonserver"  # where NVIDIA's container images have it


@dataclass(frozen=True)
class Installation:
    """A tritonserver binary, the environment that it runs in, and its backends where they are not next to it."""

    binary: Path
    environment: dict[str, str]
    backends: Path | None = None


def find_tritonserver(work: Path) -> Installation:
    """tritonserver on PATH, in its container's usual place, or in the nvidia-pytriton wheel; in this order.

    ``work`` is a folder for a copy of the wheel's backend. Raises TrtstreamError if no Triton can run here.
    """
    # The Python backend finds its packages through the python3 on PATH: let that be ours.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    installed = shutil.which("tritonserver") or shutil.which(CONTAINER_BINARY)
    if installed:
        return Installation(Path(installed), environment)
    wheel = importlib.util.find_spec("pytriton")
    if wheel is None or not wheel.submodule_search_locations:
        raise TrtstreamError("no Triton Inference Server was found; get one with: pip install 'trtstream[server]'")
    package = Path(wheel.submodule_search_locations[0])
    libraries = [package.parent / "nvidia_pytriton.libs", _libpython_folder()]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(
        [*map(str, libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    )
    return Installation(package / "tritonserver" / "bin" / "tritonserver", environment, _wheel_backends(package, work))


def _libpython_folder() -> Path:
    """The folder of this Python's shared library. With another Python's the backend would fail, or worse, run."""
    library = sysconfig.get_config_var("INSTSONAME")
    folder = Path(sysconfig.get_config_var("LIBDIR"))
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    major_minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not library.startswith("libpython") or ".so" not in library:  # a static Python names its .a archive
        library = f"libpython{major_minor}.so.1.0"
    for candidate in (folder, folder / multiarch, Path(sys.base_prefix, "lib")):  # the last: a Python that was moved
        if (candidate / library).is_file():
            return candidate
    raise TrtstreamError(
        f"Triton's Python backend needs {library}, which is not in {folder}; install it (on Debian and Ubuntu: "
        f"apt install libpython{major_minor}) or use a Python that was built with --enable-shared"
    )


def _wheel_backends(package: Path, work: Path) -> Path:
    """A copy of the wheel's Python backend with the stub of this Python next to it, as Triton wants it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    triton, backends = package / "tritonserver", work / "backends"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise TrtstreamError(f"the nvidia-pytriton wheel has no Python backend for Python {version}; use 3.10 to 3.12")
    shutil.copytree(triton / "backends" / "python", backends / "python")
    shutil.copy(stub, backends / "python")
    return backends
