"""Gives trtstream generated malformed inputs, and says what came of them.

python -m benchmarks.fuzz files ENGINE --count 1000 --seed 0
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.fuzz.files import fuzz_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    files = commands.add_parser("files", help="edited and damaged files of an engine for the cpu target")
    files.add_argument("engine", type=Path, help="a small one: it is copied for each edit")
    files.add_argument("--count", type=int, default=1000)
    files.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    report = fuzz_files(arguments.engine, arguments.count, arguments.seed)
    for outcome, count in sorted(report.outcomes.items()):
        print(f"{count:>6} {outcome}")
    for fault in report.faults:
        print(f"FAULT: {fault}")
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
