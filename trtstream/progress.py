"""Progress of long work on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]
"""``progress(done, total)`` is called with the number of steps that are done, and that there are."""

SECONDS_BETWEEN_DRAWINGS = 0.1
"""Of the bar."""


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Show the progress of a block and the time that is left: a bar on a terminal, elsewhere a line each tenth."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        # Without rich's own thread: an interrupt may come when this thread has just taken the bar's lock, and leaves it
        # taken. At its end the bar would wait for its thread, and that for the lock.
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
            task = bar.add_task(title, total=None)
            drawn = 0.0

            def draw(done: int, total: int) -> None:
                nonlocal drawn
                now = time.monotonic()
                is_due = done == total or now - drawn >= SECONDS_BETWEEN_DRAWINGS
                bar.update(task, completed=done, total=total, refresh=is_due)
                drawn = now if is_due else drawn

            yield draw
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
