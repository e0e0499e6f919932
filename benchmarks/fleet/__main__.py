"""Servers behind a proxy that share a PostgreSQL, and a gateway, while each part fails and while servers are replaced.

    python -m benchmarks.fleet --servers 3 --sessions 48 --rounds 3 --json benchmarks/results/fleet.json

A third of the conversations go through the gateway, the others speak gRPC to Envoy (or HAProxy). First all servers are
restarted one after the other, and no turn may fail. Then in each round a server is killed, one is stopped for a while
(SIGSTOP), one is drained and comes back later, one more joins and leaves again, and the database, the proxy and the
gateway are restarted. Clients that got no answer repeat their request. In the end the store must have every turn once,
and all answers are those of an engine that nothing disturbed. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from random import Random

from benchmarks import write_json
from benchmarks.fleet.parts import ACTIONS, PROXIES
from benchmarks.fleet.run import run_fleet
from benchmarks.markdown import table
from trtstream.machine import machine

SHOWN = 20  # faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3, help="in each of which every part fails once")
    parser.add_argument("--proxy", choices=PROXIES, default="envoy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    actions = [*ACTIONS] * arguments.rounds
    Random(arguments.seed).shuffle(actions)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="trtstream-fleet-") as folder:
        run = run_fleet(Path(folder), arguments.servers, arguments.sessions, actions, arguments.seed, arguments.proxy)
    print(table({"phase": name, **phase} for name, phases in run["phases"].items() for phase in phases), end="\n\n")
    print("Time to the first token, by where the server had the session's cache:", end="\n\n")
    print(table(run["first_tokens"]), end="\n\n")
    print(f"first turns by server: {run['first_turns_by_server']}; turns answered: {run['answered']}")
    write_json(arguments.json, {"machine": machine(), "load": load, **run})
    for fault in run["faults"][:SHOWN]:
        print(f"FAULT: {fault}")
    if len(run["faults"]) > SHOWN:
        print(f"FAULT: and {len(run['faults']) - SHOWN} more, in the JSON")
    sys.exit(bool(run["faults"]))


if __name__ == "__main__":
    main()
