"""Progress of long work on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]
"""``progress(done, total)`` is called with the number of steps that are done, and that there are."""


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Show the progress of a block and the time that is left: a bar on a terminal, elsewhere a line each tenth."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return

    tenths = 0
    first: tuple[int, float] | None = None  # steps that were done at the first call, and its time

    def print_line(done: int, total: int) -> None:
        nonlocal tenths, first
        first = first or (done, time.monotonic())
        if done * 10 // total > tenths:
            tenths = done * 10 // total
            left = _left(done - first[0], total - done, time.monotonic() - first[1])
            print(f"{title}: {done} of {total}{left}", file=sys.stderr, flush=True)

    yield print_line


def _left(done: int, to_do: int, seconds: float) -> str:
    """The estimate that ends a line, if it is one of minutes."""
    minutes = round(seconds * to_do / done / 60) if done else 0
    return f", about {minutes} min left" if minutes else ""
