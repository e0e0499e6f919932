"""The earlier turns of a session, from the store that its server keeps them in."""

from __future__ import annotations

from contextlib import closing

import click

from trtstream.deploy.client.conversation import PastTurn
from trtstream.terminal_text import for_stdout

SHOWN = 10


def show_earlier(store: str, session_id: str) -> list[PastTurn]:
    """Show the last turns of a session, and return all of them; none if the store has no such session.

    Raises TrtstreamError for a store that does not open.
    """
    from trtstream.sessions.turn_log import TurnLog  # here, as it takes a moment

    with closing(TurnLog(store, must_exist=True)) as log:
        head = log.head(session_id)
        turns = [] if head is None else log.branch(head.id)
    if len(turns) > SHOWN:
        click.echo(f"({len(turns) - SHOWN} turns before these: `trtstream sessions show {session_id}`)", err=True)
    for turn in turns[-SHOWN:]:
        prompt = f"{turn.num_input_tokens} token ids" if turn.prompt is None else turn.prompt
        click.echo(f"> {for_stdout(prompt)}\n{for_stdout(turn.text)}", err=True)
    return [PastTurn(turn.id.hex(), turn.prompt or "", turn.position) for turn in turns]
