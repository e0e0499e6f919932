"""The ``trtstream`` command. Commands live in the rooms that do the work and are imported only when they run."""

from __future__ import annotations

import importlib
import signal
import sys
import traceback

import click

from trtstream import __version__
from trtstream.errors import TrtstreamError

COMMANDS = {
    "build": "trtstream.build.command:build",
    "inspect": "trtstream.inspect_engine:inspect",
    "package": "trtstream.deploy.serving.package:package",
    "serve": "trtstream.deploy.serving.serve:serve",
    "smoke": "trtstream.deploy.client.smoke:smoke",
    "bench": "trtstream.deploy.client.bench:bench",
    "chat": "trtstream.deploy.client.chat:chat",
    "eval": "trtstream.evaluation.command:evaluate",
    "quickstart": "trtstream.quickstart:quickstart",
}


class LazyGroup(click.Group):
    """A group whose commands are imported by name, so that one command never pays for another's imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__)
def cli(debug: bool) -> None:
    """Endless LLM chats: attention sinks and a cyclic KV cache, from a checkpoint to a streaming Triton service."""


def main() -> None:
    """Run the command line: exit 0 (done), 1 (the work failed) or 2 (bad usage)."""
    debug = "--debug" in sys.argv[1:]
    # Unwind on SIGTERM too, so that temporary folders go and child processes stop.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        cli()
    except (TrtstreamError, OSError) as error:
        if debug:
            traceback.print_exc()
        click.echo(f"trtstream: {error}", err=True)
        sys.exit(1)
