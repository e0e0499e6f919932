"""Types of options that name a file to write at the end: checked before the work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from trtstream.extras import require_extra


class OutputFile(click.Path):
    """A file that can be written: the folder it is to go to exists."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.absolute().parent.is_dir():
            self.fail(f"the folder {path.absolute().parent} does not exist", param, ctx)
        return path


class PlotFile(OutputFile):
    """The same for a picture. Raises TrtstreamError where matplotlib is not installed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        require_extra("matplotlib", "bench", "--plot")
        return super().convert(value, param, ctx)
