"""The parts of a fleet as processes on this machine, each always at the same address, and how they fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.crash.kills import GIVE_UP_SECONDS, kill_all
from tests.deploy.envoy import Envoy
from tests.deploy.haproxy import HAProxy
from tests.deploy.proxy import Proxy
from tests.deploy.server import Server, free_ports, serve_process
from tests.deploy.serving.processes import family
from tests.sessions.postgres import Postgres
from trtstream.deploy.serving.environment import SESSION_STORE

ACTIONS = ("kill", "stop", "drain", "join", "database", "proxy", "gateway")
PLANNED = ("rolling restart", "drain", "join")
"""What an operator does. No client may notice."""
PROXIES: dict[str, type[Proxy]] = {"envoy": Envoy, "haproxy": HAProxy}
DRAIN_DELAY = 5.0  # seconds, in which the proxy notices
STOPPED_SECONDS = 10.0
AWAY_SECONDS = 2.0
BESIDE_SECONDS = 4.0  # that a server stays which has joined the others


class Node:
    """A server. Those with even numbers share a folder for snapshots; the others continue sessions from the log."""

    def __init__(self, engine: Path, folder: Path, store: str, number: int) -> None:
        self._engine, self._folder, self._store, self._number = engine, folder, store, number
        grpc, http, metrics = free_ports(3)
        self.ports = grpc, http, metrics
        self._lives = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def life(self) -> str:
        """Names this run of the server; "" while there is none."""
        return f"server{self._number}.{self._lives}" if self._process else ""

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self._lives += 1
        log = self._folder / f"server{self._number}.{self._lives}.log"
        grpc, http, metrics = map(str, self.ports)
        options = ["--grpc-port", grpc, "--http-port", http, "--metrics-port", metrics]
        options += ["--restart", "never", "--drain-delay", str(DRAIN_DELAY)]
        if self._number % 2 == 0:
            options += ["--snapshot-dir", str(self._folder / "snapshots")]
        variables = {SESSION_STORE: self._store}
        self._process = serve_process(self._engine, log, *options, folder=None, **variables)
        assert self._process.stdout is not None
        Server(self._process, log, self._process.stdout.readline())

    def processes(self) -> set[int]:
        assert self._process is not None
        return {self._process.pid} | family(self._process.pid)

    def drain(self) -> None:
        """Stop it as an operator does."""
        assert self._process is not None
        with self._process as process:
            process.terminate()
            process.wait(GIVE_UP_SECONDS)
        self._process = None

    def close(self) -> None:
        """Kill whatever runs of it."""
        if self._process is not None:
            with self._process:
                kill_all(self.processes())
            self._process = None

    def signal(self, number: signal.Signals, processes: set[int]) -> None:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)


class GatewayProcess:
    """``trtstream gateway`` in front of the proxy."""

    def __init__(self, folder: Path, store: str, triton: str) -> None:
        (port,) = free_ports(1)
        self.url = f"127.0.0.1:{port}"
        self._log = folder / "gateway.log"
        self._command = [sys.executable, "-m", "trtstream", "gateway", "--triton", triton, "--port", str(port)]
        self._environment = {**os.environ, SESSION_STORE: store}
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready: "):
            self.stop()
            raise RuntimeError(f"the gateway does not start: {self._log.read_text()[-1000:]}")

    def stop(self) -> None:
        """End it at once."""
        with self._process as process:
            process.kill()


@dataclass
class Fleet:
    """Servers, ``spare`` that joins them at times, their database, a proxy in front of them, and a gateway."""

    nodes: list[Node]
    spare: Node
    postgres: Postgres
    proxy: Proxy
    gateway: GatewayProcess

    def roll(self) -> None:
        """Replace every server, one after the other."""
        for node in self.nodes:
            node.drain()
            node.start()
            self.proxy.wait_for(len(self.nodes))

    def act(self, action: str, random: Random) -> None:
        """What fails, or changes; it is well again when this returns."""
        node = random.choice(self.nodes)
        if action == "kill":
            node.close()
            node.start()
        elif action == "stop":
            processes = node.processes()
            node.signal(signal.SIGSTOP, processes)
            time.sleep(STOPPED_SECONDS)
            node.signal(signal.SIGCONT, processes)
        elif action == "drain":
            node.drain()
            time.sleep(AWAY_SECONDS)
            node.start()
        elif action == "join":
            self.spare.start()
            self.proxy.wait_for(len(self.nodes) + 1)
            time.sleep(BESIDE_SECONDS)
            self.spare.drain()
        elif action == "database":
            self.postgres.stop()
            time.sleep(AWAY_SECONDS)
            self.postgres.start()
        elif action == "proxy":
            self.proxy.stop()
            self.proxy.start()
        else:
            self.gateway.stop()
            self.gateway.start()
        self.proxy.wait_for(len(self.nodes))
