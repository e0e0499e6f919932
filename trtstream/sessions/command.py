"""``trtstream sessions``: look into a session store and delete from it, without an engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from trtstream.errors import TrtstreamError
from trtstream.terminal_text import for_stdout

if TYPE_CHECKING:
    from trtstream.sessions.records import SessionKey, TurnRecord
    from trtstream.sessions.turn_log import TurnLog

store_option = click.option(
    "--session-store",
    "store",
    required=True,
    envvar="TRTSTREAM_SESSION_STORE",
    metavar="PATH|URL",
    help="The store, as `serve` has it; or TRTSTREAM_SESSION_STORE.",
)


@click.group()
def sessions() -> None:
    """Look into a session store, or delete sessions. It needs no engine.

    KEY is a session's id. A numeric sequence_id is written as number:77.
    """


@sessions.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each session.")
@store_option
def list_sessions(store: str, as_json: bool) -> None:
    """List the sessions, the one that was continued last first: its last turn's time and id, its tokens, its KEY."""
    with _opened(store) as log:
        summaries = log.summaries()
    if as_json:
        for summary in summaries:
            values = {"session": summary.key, "turn_id": summary.turn_id.hex(), "session_tokens": summary.position}
            click.echo(json.dumps({**values, "updated": summary.updated, "expires": summary.expires}))
        return
    for summary in summaries:  # no table: a key may be longer than a line
        key = for_stdout(_shown(summary.key))
        click.echo(f"{_time(summary.updated)}  {summary.position:>11,} tokens  {summary.turn_id.hex()}  {key}")


@sessions.command()
@click.argument("key")
@store_option
def show(store: str, key: str) -> None:
    """Print the texts of a session."""
    for turn in _turns(store, key):
        head = f"{_time(turn.created)}  {turn.id.hex()}  {turn.position:,} tokens, {turn.finish_reason}"
        click.secho(for_stdout(head), dim=True)
        if turn.system is not None:
            click.echo(for_stdout(f"system: {turn.system}"))
        given = f"{turn.num_input_tokens} token ids" if turn.prompt is None else turn.prompt
        click.secho(for_stdout(f"> {given}"), bold=True)
        click.echo(for_stdout(turn.text) + "\n")


@sessions.command()
@click.argument("key")
@store_option
def export(store: str, key: str) -> None:
    """Write a session as JSON lines: one object for each turn, with its token ids."""
    for turn in _turns(store, key):
        click.echo(json.dumps(_values(turn)))


@sessions.command()
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@store_option
def delete(store: str, keys: tuple[str, ...]) -> None:
    """Delete sessions and their turns; turns that a fork shares stay with the fork."""
    with _opened(store) as log:
        for key in keys:
            if not log.delete(_key(key)):
                raise TrtstreamError(f"{log.name} has no session {key!r}; see `trtstream sessions list`")
            click.echo(f"deleted {key}", err=True)


@contextmanager
def _opened(store: str) -> Iterator[TurnLog]:
    from trtstream.sessions.turn_log import TurnLog

    with closing(TurnLog(store, must_exist=True)) as log:
        yield log


def _turns(store: str, key: str) -> list[TurnRecord]:
    with _opened(store) as log:
        head = log.head(_key(key))
        if head is None:
            raise TrtstreamError(f"{log.name} has no session {key!r}; see `trtstream sessions list`")
        return log.branch(head.id)


def _key(text: str) -> SessionKey:
    kind, colon, number = text.partition(":")
    return int(number) if kind == "number" and colon and number.isascii() and number.isdigit() else text


def _shown(key: SessionKey) -> str:
    return key if isinstance(key, str) else f"number:{key}"


def _values(turn: TurnRecord) -> dict[str, Any]:
    values = {name: value.hex() if isinstance(value, bytes) else value for name, value in vars(turn).items()}
    return {**values, "tokens": list(turn.tokens)}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
