"""The ``trtstream`` command's first instructions: how it stops, before anything that takes time is imported."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line: exit 0 (done), 1 (the work failed) or 2 (bad usage)."""
    # A stop of `serve` before it is ready is clean. Other commands unwind, so that temporary folders are removed.
    code = 0 if sys.argv[1:2] == ["serve"] else 128 + signal.SIGTERM
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(code))
    from trtstream.cli import main as run

    run()


if __name__ == "__main__":
    main()
