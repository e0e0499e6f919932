"""Tables on stdout. Square brackets are text, not rich's markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


def print_values(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and their values."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    Console(markup=False).print(table)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, left: int = 0) -> None:
    """Print ``rows`` under the names of their ``columns``: text in the first ``left`` of them, numbers in the others.

    An empty row is a blank line.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for number, name in enumerate(columns):
        text = number < left
        table.add_column(name, justify="left" if text else "right", no_wrap=not text)
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)
