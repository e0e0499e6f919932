"""Commits turns without end and prints each id once it is committed: python commit_loop.py URL KEY."""

from __future__ import annotations

import sys
from random import Random

from tests.sessions.records import commit_after, turn_after
from trtstream.sessions.turn_log import TurnLog

if __name__ == "__main__":
    log, key, random = TurnLog(sys.argv[1]), sys.argv[2], Random()
    while True:
        head = log.head(key)
        turn = turn_after(head, random)
        (error,) = log.commit([commit_after(key, head, turn)])
        assert error is None, error
        print(turn.id.hex(), flush=True)
