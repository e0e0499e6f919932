"""Finds a real Triton Inference Server on this machine, and runs it as a child that cannot outlive this process."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from trtstream.errors import TrtstreamError

CONTAINER_BINARY = "/opt/tritonserver/bin/tritonserver"  # where NVIDIA's container images have it
EXIT_SECONDS = 3  # that Triton may wait for requests in flight, and then the same again to shut down
LOG_SECONDS = 1.0  # for the rest of the log to arrive once Triton has exited
TAIL_LINES = 20
PR_SET_PDEATHSIG = 1
SHARED_MEMORY = Path("/dev/shm")


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


def mpirun(commands: list[list[str]]) -> list[str]:
    """The command line that runs ``commands`` as the ranks of one MPI job."""
    line = ["mpirun", "--allow-run-as-root"]
    for rank, command in enumerate(commands):
        line += [*([":"] if rank else []), "-n", "1", *command]
    return line


class TritonProcess:
    """A running tritonserver with its backends' processes; leaving the context kills those that are left.

    ``on_exit`` is called from another thread when Triton has exited. Its log goes to our stderr from `show_log` on;
    until then it is held back. Triton starts in ``folder`` (default: this process's), and has ``exit_seconds`` to end
    requests in flight when it is stopped. ``ranks`` above 1 start that many, under mpirun: the first serves, the others
    load the model ``ranked_model`` alone and work for it.
    """

    def __init__(
        self,
        installation: Installation,
        arguments: list[str],
        environment: dict[str, str],
        on_exit: Callable[[], None],
        *,
        folder: Path | None = None,
        exit_seconds: float = EXIT_SECONDS,
        ranks: int = 1,
        ranked_model: str = "",
    ) -> None:
        self._shared_memory = f"trtstream-{secrets.token_hex(8)}-"
        self._exit_seconds = exit_seconds
        backends = [] if installation.backends is None else [f"--backend-directory={installation.backends}"]
        common = [str(installation.binary), *backends, f"--exit-timeout-secs={round(exit_seconds)}", *arguments]
        commands = [
            [*common, f"--backend-config=python,shm-region-prefix-name={self._shared_memory}{rank}-"]
            for rank in range(ranks)
        ]
        for command in commands[1:]:
            command += ["--model-control-mode=explicit", f"--load-model={ranked_model}"]
        libc = ctypes.CDLL(None)
        self._process = subprocess.Popen(
            commands[0] if ranks == 1 else mpirun(commands),
            cwd=folder,
            env={**installation.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal is ours alone
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        self._log: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._log_shown = False
        self._reader = threading.Thread(target=self._read_log, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        threading.Thread(target=self._wait, args=(on_exit,), daemon=True).start()

    def __enter__(self) -> TritonProcess:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for region in SHARED_MEMORY.glob(f"{self._shared_memory}*"):
            region.unlink(missing_ok=True)

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def tail(self) -> list[str]:
        """The last lines of the log of a Triton that has exited."""
        self._reader.join(LOG_SECONDS)  # its end comes only when all of Triton's children are gone
        return [line.decode(errors="replace").rstrip() for line in self._log]

    def show_log(self) -> None:
        """From now on pass Triton's log to stderr, line by line."""
        self._log_shown = True

    def stop(self) -> None:
        """Ask Triton to exit, and give it time to. It does not exit while a client keeps a stream open."""
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self._exit_seconds + EXIT_SECONDS)

    def _wait(self, on_exit: Callable[[], None]) -> None:
        self._process.wait()
        on_exit()

    def _read_log(self, stdout: IO[bytes]) -> None:
        for line in stdout:
            self._log.append(line)
            if self._log_shown:
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
