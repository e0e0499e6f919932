"""What do kills at any moment leave of sessions in a store? A small model with many clients is killed again and again.

    python -m benchmarks.crash --kills 20 --hits 5 --json benchmarks/results/crash.json
    python -m benchmarks.crash --servers 2 --rounds 4 --json benchmarks/results/crash_fleet.json

Each life of the server (serve, Triton and the model's process) ends in SIGKILL: at a random moment, or when the model
comes to a failpoint (see `trtstream.failpoint`). Clients that got no answer repeat their request to the next server.
After each life the store must have every turn that was answered, once, and of each session at most one more. All
tokens are compared with those of an engine that nothing disturbed. Exits with 1 if anything is wrong.

With ``--servers 2``, two servers share one PostgreSQL, and each turn goes to either or to both, also as two requests of
which one must lose. Meanwhile servers are stopped and woken (SIGSTOP), killed, and cut off from the database: before a
COMMIT, before its answer, and without an end of the connection.

What a loss of power does is not tried: it rests on SQLite's and PostgreSQL's settings.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import write_json
from benchmarks.crash.fleet import run_rivals
from benchmarks.crash.kills import RANDOM, Campaign
from tests.sessions.postgres import Postgres
from trtstream import failpoint
from trtstream.machine import machine

SHOWN = 20  # faults
STORES = ("sqlite", "postgresql")


@contextmanager
def closing_postgres() -> Iterator[Postgres]:
    """A PostgreSQL of our own."""
    server = Postgres()
    try:
        yield server
    finally:
        server.remove()


@contextmanager
def new_store(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/sessions.db"
    else:
        with closing_postgres() as postgres:
            yield postgres.url


def crash(store: str, sessions: int, kills: int, hits: int, seed: int) -> dict[str, Any]:
    """``kills`` at random moments and ``hits`` at each failpoint, in random order; what came of them, for JSON."""
    kinds = [RANDOM] * kills + [*failpoint.PLACES] * hits
    Random(seed).shuffle(kinds)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trtstream-crash-") as folder, new_store(store, Path(folder)) as url:
        campaign = Campaign(Path(folder), url, sessions, seed)
        results = campaign.run(kinds)
    return {
        "store": store,
        "sessions": sessions,
        "seed": seed,
        "seconds": round(time.monotonic() - started),
        "near_ties_avoided": campaign.near_ties,
        "kinds": [vars(result) for result in results],  # asdict would copy a Counter as pairs
    }


def crash_fleet(sessions: int, rounds: int, seed: int) -> dict[str, Any]:
    """Two servers, of which one fails in each way in each of the ``rounds``; what came of them, for JSON."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trtstream-crash-") as folder, closing_postgres() as postgres:
        result = run_rivals(Path(folder), postgres, sessions, rounds, seed)
    return {"sessions": sessions, "seed": seed, "seconds": round(time.monotonic() - started), **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=STORES, action="append", help="default: both")
    parser.add_argument("--servers", type=int, choices=(1, 2), default=1)
    parser.add_argument("--rounds", type=int, default=4, help="of two servers: one fails in each way")
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--kills", type=int, default=20, help="at random moments")
    parser.add_argument("--hits", type=int, default=5, help="of each failpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    if arguments.servers == 2:
        run = crash_fleet(arguments.sessions, arguments.rounds, arguments.seed)
        runs, faults = [run], run["faults"]
        print(
            f"two servers: {run['sessions']} sessions, {run['seconds']} s; requests without an answer: {run['codes']}"
        )
    else:
        stores = arguments.store or STORES
        runs = [crash(store, arguments.sessions, arguments.kills, arguments.hits, arguments.seed) for store in stores]
        faults = [fault for run in runs for kind in run["kinds"] for fault in kind["faults"]]
        for run in runs:
            print_kills(run)
    for fault in faults[:SHOWN]:
        print(f"FAULT: {fault}")
    write_json(arguments.json, {"machine": machine(), "runs": runs})
    sys.exit(bool(faults))


def print_kills(run: dict[str, Any]) -> None:
    print(f"{run['store']}: {run['sessions']} sessions, {run['seconds']} s")
    for kind in run["kinds"]:
        print(
            f"  {kind['kind']:<16}{kind['kills']:>3} kills {kind['answered']:>6} turns answered "
            f"{kind['unanswered']:>4} committed without an answer"
        )


if __name__ == "__main__":
    main()
