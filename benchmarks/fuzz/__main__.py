"""Gives trtstream generated malformed inputs, and says what came of them.

python -m benchmarks.fuzz files ENGINE --count 1000 --seed 0
python -m benchmarks.fuzz checkpoints FOLDER FILE.gguf ... --count 1000 --seed 0
python -m benchmarks.fuzz requests 127.0.0.1:8001 127.0.0.1:8000 --count 3000 --seed 0

Which branches the cases reach, after `pip install coverage`; `include` narrows it to the checks of checkpoints:
coverage run -m benchmarks.fuzz checkpoints FOLDER FILE.gguf ... ; coverage combine
coverage report --show-missing --include='build/*.py,build/families/*'
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.fuzz.checkpoints import fuzz_checkpoints
from benchmarks.fuzz.files import fuzz_files
from benchmarks.fuzz.requests import fuzz_requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    files = commands.add_parser("files", help="edited and damaged files of an engine for the cpu target")
    files.add_argument("engine", type=Path, help="a small one: it is copied for each edit")
    files.set_defaults(run=lambda given: fuzz_files(given.engine, given.count, given.seed))
    checkpoints = commands.add_parser("checkpoints", help="edited and damaged checkpoints")
    checkpoints.add_argument(
        "sources", type=Path, nargs="+", help="small folders and .gguf files: one is copied for each"
    )
    checkpoints.set_defaults(run=lambda given: fuzz_checkpoints(given.sources, given.count, given.seed))
    requests = commands.add_parser(
        "requests", help="malformed requests to a running `trtstream serve` of a small engine"
    )
    requests.add_argument("grpc", help="host:port of its gRPC service")
    requests.add_argument("http", help="host:port of its HTTP service")
    requests.set_defaults(run=lambda given: fuzz_requests(given.grpc, given.http, given.count, given.seed))
    for command in (files, checkpoints, requests):
        command.add_argument("--count", type=int, default=1000)
        command.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    report = arguments.run(arguments)
    for outcome, count in sorted(report.outcomes.items()):
        print(f"{count:>6} {outcome}")
    for fault in report.faults:
        print(f"FAULT: {fault}")
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
