"""A connection to PostgreSQL on which nothing takes longer than it should, whatever has become of the server.

PostgreSQL's own limits need a server that runs, and TCP's one that is gone: a server that is stopped, or a proxy that
passes nothing on, is neither.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg

MARGIN_SECONDS = 1.0  # in which the server's own limit comes first


class BoundedConnection(psycopg.Connection[Any]):
    """Closed by the first wait that takes longer than ``seconds``; that raises psycopg.OperationalError."""

    seconds = 0.0

    def wait(self, gen: Generator[Any, Any, Any], *arguments: Any, **options: Any) -> Any:
        return super().wait(self._until(gen, time.monotonic() + self.seconds + MARGIN_SECONDS), *arguments, **options)

    def _until(self, gen: Generator[Any, Any, Any], deadline: float) -> Generator[Any, Any, Any]:
        """``gen``, which psycopg resumes several times a second, until the deadline."""
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer within {self.seconds:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


def connect(seconds: float, *arguments: Any, **options: Any) -> BoundedConnection:
    """As `psycopg.connect`."""
    connection = BoundedConnection.connect(*arguments, **options)
    connection.seconds = seconds
    return connection
