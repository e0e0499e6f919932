"""The ``trtstream`` command. Commands live in the rooms that do the work and are imported only when they run."""

from __future__ import annotations

import difflib
import importlib
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
    "gateway": "trtstream.deploy.serving.gateway:gateway",
    "smoke": "trtstream.deploy.client.smoke:smoke",
    "bench": "trtstream.deploy.client.bench:bench",
    "chat": "trtstream.deploy.client.chat:chat",
    "sessions": "trtstream.sessions.command:sessions",
    "eval": "trtstream.evaluation.command:evaluate",
    "quickstart": "trtstream.quickstart:quickstart",
    "doctor": "trtstream.doctor:doctor",
}


class LazyGroup(click.Group):
    """A group whose commands are imported by name, so that one command never pays for another's imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and (similar := difflib.get_close_matches(args[0], COMMANDS, 1)):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {similar[0]!r}?")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__)
def cli(debug: bool) -> None:
    """Endless LLM chats: attention sinks and a cyclic KV cache, from a checkpoint to a streaming Triton service."""


def main() -> None:
    """Run the command line: exit 0 (done), 1 (the work failed) or 2 (bad usage). `trtstream.__main__` begins it."""
    debug = "--debug" in sys.argv[1:]
    try:
        cli(prog_name="trtstream")
    except (TrtstreamError, OSError) as error:
        if debug:
            traceback.print_exc()
        click.echo(f"trtstream: {error}", err=True)
        sys.exit(1)
