"""Runs a Triton Inference Server as a child that cannot outlive this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

import trtstream
from trtstream.deploy.serving.tritonserver import Installation
from trtstream.deploy.serving.workplace import MODEL_BYTES, Workplace

EXIT_SECONDS = 3  # that Triton may wait for requests in flight, and then the same again to shut down
LOG_SECONDS = 1.0  # for the rest of the log to arrive once Triton has exited
TAIL_LINES = 20
PRIVATE = 0o077  # umask: shared memory and sockets are for this user alone
PR_SET_PDEATHSIG = 1


def mpirun(commands: list[list[str]]) -> list[str]:
    """The command line that runs ``commands`` as the ranks of one MPI job."""
    line = ["mpirun", "--allow-run-as-root"]
    for rank, command in enumerate(commands):
        line += [*([":"] if rank else []), "-n", "1", *command]
    return line


class TritonProcess:
    """A running tritonserver with its backends' processes; leaving the context kills those that are left.

    ``on_exit`` is called from another thread when Triton has exited, unless that was asked for by leaving the context.
    Triton's log goes to our stderr from `show_log` on; until then it is held back. Triton starts in ``folder``, which
    comes first on a model's sys.path (default: one that holds only this trtstream), and has ``exit_seconds`` to end
    requests in flight when it is stopped. ``ranks`` above 1 start that many, under mpirun: the first serves, the
    others load the model ``ranked_model`` alone and work for it.
    """

    def __init__(
        self,
        installation: Installation,
        arguments: list[str],
        environment: dict[str, str],
        place: Workplace,
        on_exit: Callable[[], None],
        *,
        folder: Path | None = None,
        exit_seconds: float = EXIT_SECONDS,
        ranks: int = 1,
        ranked_model: str = "",
    ) -> None:
        self._place = place
        self._on_exit = on_exit
        self._is_closed = False
        self._exit_seconds = exit_seconds
        if folder is None:
            folder = place.folder / "run"
            if not folder.exists():
                folder.mkdir()
                (folder / "trtstream").symlink_to(Path(trtstream.__file__).parent)
        backends = [] if installation.backends is None else [f"--backend-directory={installation.backends}"]
        common = [str(installation.binary), *backends, f"--exit-timeout-secs={round(exit_seconds)}", *arguments]
        commands = [
            [
                *common,
                f"--backend-config=python,shm-region-prefix-name={place.memory_prefix}{rank}-",
                f"--backend-config=python,shm-default-byte-size={MODEL_BYTES}",
            ]
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
            umask=PRIVATE,
            start_new_session=True,  # a Ctrl-C in the terminal is ours alone
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        self._log: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._log_shown = False
        self._reader = threading.Thread(target=self._read_log, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._waiter.start()

    def __enter__(self) -> TritonProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._waiter.join()
        self._reader.join(LOG_SECONDS)  # its end comes when all of Triton's children are gone
        self._place.remove_shared_memory()

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def death(self) -> str:
        """Why Triton has exited: the model's error if it gave one. Else the log's last lines go to stderr."""
        self._reader.join(LOG_SECONDS)
        tail = [line.decode(errors="replace").rstrip() for line in self._log]
        reason = re.search(r"failed to load .*TrtstreamError: (.*?)(\\n|\"?$)", "\n".join(tail), re.MULTILINE)
        if reason:
            return reason[1]
        self.print_tail()
        return f"tritonserver exited with code {self.exit_code}; its last lines are above"

    def print_tail(self) -> None:
        """Pass the last lines of the log to stderr, unless all were."""
        if not self._log_shown:
            sys.stderr.buffer.write(b"".join(self._log))
            sys.stderr.buffer.flush()

    def dead_child(self) -> int | None:
        """The id of a process of Triton's own that has died without Triton noticing it."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                child = int(stat.parent.name)
                if state == "Z" and int(session) == self._process.pid != child:
                    return child
        return None

    def show_log(self) -> None:
        """From now on pass Triton's log to stderr, line by line."""
        self._log_shown = True

    def stop(self) -> None:
        """Ask Triton to exit, and give it time to. It does not exit while a client keeps a stream open."""
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self._exit_seconds + EXIT_SECONDS)

    def _wait(self) -> None:
        self._process.wait()
        if not self._is_closed:
            self._on_exit()

    def _read_log(self, stdout: IO[bytes]) -> None:
        for line in stdout:
            self._log.append(line)
            if self._log_shown:
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
