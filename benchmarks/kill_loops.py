"""Does a service come back by itself? Kills a model's process and Triton under load, again and again.

Several clients stream from a served engine all the time. Each kill (SIGKILL of the Python backend's process, and of
tritonserver, in turn) is timed until every client has its error and until the service answers again. Writes JSON and
prints a summary:

    python -m benchmarks.kill_loops ENGINE --kills 20 --json benchmarks/results/kill_loops.json
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import write_json
from tests.deploy.server import serving
from tests.deploy.serving.processes import of_kind
from trtstream.deploy.client.client import Client
from trtstream.errors import TrtstreamError
from trtstream.machine import machine

VICTIMS = {"model": "triton_python_backend_stub", "triton": "tritonserver"}
LOAD_SECONDS = 12.0  # of service between kills, so that each restart has the first delay
POLL_SECONDS = 0.02
GIVE_UP_SECONDS = 120.0


@dataclass(frozen=True)
class Kill:
    """One kill. Seconds from the signal until the last client had an error, and until a new request was answered."""

    victim: str
    clients: int
    noticed_s: float
    answered_s: float


class Load(threading.Thread):
    """A client that streams one answer. ``ended_at`` is when it got an error, by `time.monotonic`."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.started = threading.Event()
        self.ended_at: float | None = None
        self.error = ""
        self.start()

    def run(self) -> None:
        try:
            with Client(self._url) as client:
                for _ in client.generate(input_ids=[1, 2, 3], max_tokens=1 << 20, ignore_eos=True, stream=True):
                    self.started.set()
        except TrtstreamError as error:
            self.error = str(error)
        self.ended_at = time.monotonic()


def wait(done: threading.Event | threading.Thread, what: str) -> None:
    if isinstance(done, threading.Event):
        reached = done.wait(GIVE_UP_SECONDS)
    else:
        done.join(GIVE_UP_SECONDS)
        reached = not done.is_alive()
    if not reached:
        raise RuntimeError(f"{what} did not happen within {GIVE_UP_SECONDS:g} s")


def wait_for_answer(url: str) -> None:
    give_up = time.monotonic() + GIVE_UP_SECONDS
    while True:
        try:
            with Client(url) as client:
                client.answer(input_ids=[1], max_tokens=1, ignore_eos=True)
            return
        except TrtstreamError:
            if time.monotonic() > give_up:
                raise
            time.sleep(POLL_SECONDS)


def kill_once(serve: int, url: str, victim: str, clients: int, load_seconds: float) -> Kill:
    loads = [Load(url) for _ in range(clients)]
    for load in loads:
        wait(load.started, "a client's first token")
    time.sleep(load_seconds)
    early = [load.error for load in loads if load.ended_at is not None]
    if early:
        raise RuntimeError(f"a client's stream ended before the kill: {early[0]}")
    process = of_kind(serve, VICTIMS[victim])
    killed_at = time.monotonic()
    os.kill(process, signal.SIGKILL)
    for load in loads:
        wait(load, "a client's error")
    noticed = max(load.ended_at for load in loads if load.ended_at is not None) - killed_at
    wait_for_answer(url)
    kill = Kill(victim, clients, noticed, time.monotonic() - killed_at)
    print(f"{victim}: all clients knew after {noticed:.2f} s, answered after {kill.answered_s:.2f} s", file=sys.stderr)
    return kill


def kill_loops(engine: Path, kills: int, clients: int, load_seconds: float = LOAD_SECONDS) -> list[Kill]:
    """Kill each victim ``kills`` times, in turn, while ``clients`` stream."""
    limit = ("--max-restarts", str(len(VICTIMS) * kills))
    victims = [victim for _ in range(kills) for victim in VICTIMS]
    with tempfile.TemporaryDirectory() as folder, serving(engine, Path(folder, "log"), *limit) as server:
        return [kill_once(server.process.pid, server.grpc_url, victim, clients, load_seconds) for victim in victims]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--kills", type=int, default=20, help="of each victim")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    kills = kill_loops(arguments.engine, arguments.kills, arguments.clients)
    slowest = {
        victim: {
            "noticed_s": max(kill.noticed_s for kill in kills if kill.victim == victim),
            "answered_s": max(kill.answered_s for kill in kills if kill.victim == victim),
        }
        for victim in VICTIMS
    }
    for victim, times in slowest.items():
        print(
            f"{victim} killed {arguments.kills} times: all clients knew within {times['noticed_s']:.2f} s, "
            f"the service answered within {times['answered_s']:.2f} s"
        )
    result = {"machine": machine(), "slowest": slowest, "kills": [asdict(kill) for kill in kills]}
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
