"""Options that name a file to write are checked before the work."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from trtstream.errors import TrtstreamError
from trtstream.output_file import OutputFile, PlotFile


@click.command()
@click.option("--json", "json_file", type=OutputFile())
@click.option("--plot", "plot_file", type=PlotFile())
def command(json_file: Path | None, plot_file: Path | None) -> None:
    click.echo(repr((json_file, plot_file)))


def test_files_that_can_be_written(tmp_path: Path) -> None:
    options = {"--json": tmp_path / "new.json", "--plot": tmp_path / "new.png"}
    done = CliRunner().invoke(command, [str(part) for option in options.items() for part in option])
    assert done.stdout == f"{tuple(options.values())!r}\n"
    assert list(tmp_path.iterdir()) == []
    assert CliRunner().invoke(command).stdout == "(None, None)\n"


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_folder_that_does_not_exist(option: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [option, str(tmp_path / "no" / "file")])
    assert done.exit_code == 2
    assert f"the folder {tmp_path / 'no'} does not exist" in done.stderr


def test_a_plot_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(command, ["--plot", str(tmp_path / "plot.png")])
    assert isinstance(done.exception, TrtstreamError)
    assert "--plot needs matplotlib: pip install" in str(done.exception)
