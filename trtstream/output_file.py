"""The type and the check of command-line options that name a file to write at the end."""

from __future__ import annotations

from pathlib import Path

import click

OUTPUT_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


def output_file(_context: click.Context, _option: click.Parameter, value: Path | None) -> Path | None:
    """Refuse before the work what could not be written after it."""
    if value is not None and not value.absolute().parent.is_dir():
        raise click.BadParameter(f"the folder {value.absolute().parent} does not exist")
    return value
