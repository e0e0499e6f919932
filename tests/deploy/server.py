"""A real ``trtstream serve`` as a process on free ports."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 60
SIGNAL_SECONDS = 0.3
READY = re.compile(r"ready: grpc=(\S+) http=(\S+) metrics=(\S+) (?:openai=(\S+) )?models=(\S+)\n")


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    with ExitStack() as bound:
        sockets = [bound.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Server:
    """A running ``trtstream serve``; its stderr goes to the file ``log``."""

    process: subprocess.Popen[str]
    log: Path
    ready_line: str
    grpc_url: str = field(init=False)
    http_url: str = field(init=False)
    metrics_url: str = field(init=False)
    openai_url: str | None = field(init=False)
    models: list[str] = field(init=False)

    def __post_init__(self) -> None:
        match = READY.fullmatch(self.ready_line)
        assert match, f"not ready: {self.ready_line!r}\n{self.log.read_text()}"
        self.grpc_url, self.http_url, self.metrics_url = match[1], match[2], match[3]
        self.openai_url = match[4]
        self.models = match[5].split(",")

    @property
    def ports(self) -> tuple[int, int]:
        """Those of gRPC and HTTP."""
        grpc, http = (int(url.rpartition(":")[2]) for url in (self.grpc_url, self.http_url))
        return grpc, http

    def stop(self, *signals: signal.Signals) -> int:
        """Send signals (default SIGTERM) and wait; returns the exit code."""
        for number in signals or (signal.SIGTERM,):
            self.process.send_signal(number)
        return self.process.wait(START_SECONDS)


def serve_process(
    source: Path, log: Path, *options: str, folder: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start ``trtstream serve``, as a user would, on free ports unless ``options`` name others.

    Leaving its context waits for its end.
    """
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    command = [sys.executable, "-m", "trtstream", "serve", str(source), *ports, *options]
    with log.open("w") as stderr:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=folder,
            env={**os.environ, **environment},
        )


@contextmanager
def serving(source: Path, log: Path, *options: str) -> Iterator[Server]:
    """A server that is ready; leaving the context stops it at once."""
    with serve_process(source, log, *options) as process:
        try:
            assert process.stdout is not None
            yield Server(process, log, process.stdout.readline())
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):  # for it to take the first signal, as it keeps the second
                process.wait(SIGNAL_SECONDS)
            process.terminate()
            process.wait(START_SECONDS)
