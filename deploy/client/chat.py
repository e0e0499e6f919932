"""``trtstream chat``: talk to a served model in the terminal, or feed it one turn per line through a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from trtstream.deploy.client.connect import connect, service_options
from trtstream.deploy.client.conversation import MAX_TOKENS, Conversation
from trtstream.deploy.client.earlier import show_earlier
from trtstream.deploy.client.sampling_options import sampling_options


@click.command()
@service_options
@click.option("--session", "session_id", help="Come back to the conversation with this id.")
@click.option(
    "--session-store",
    "store",
    envvar="TRTSTREAM_SESSION_STORE",
    metavar="PATH|URL",
    help="The server's store, to show the earlier turns of --session, and for /undo; or TRTSTREAM_SESSION_STORE.",
)
@click.option("--system", help="A system text for a new conversation; all of it stays in the model's sight.")
@sampling_options(defaults={"max_tokens": MAX_TOKENS})
def chat(
    url: str,
    model_name: str,
    tls_ca: Path | None,
    session_id: str | None,
    store: str | None,
    system: str | None,
    **sampling: Any,
) -> None:
    """Chat with a served model. Ctrl-C cancels an answer, Ctrl-D ends the chat, /help shows the other keys.

    Where stdin is not a terminal, every line is a turn, and stdout gets the answers alone.
    """
    if session_id and system:
        raise click.UsageError("--system is for a new conversation and --session for an old one; give one of them")
    options = {name: value for name, value in sampling.items() if value not in (None, ())}
    with connect(url, model_name, tls_ca) as client:
        if session_id:
            client.require_resumable(session_id)
        earlier = show_earlier(store, session_id) if store and session_id else []
        conversation = Conversation(client, session_id, system, options, earlier)
        if sys.stdin.isatty():
            from trtstream.deploy.client.terminal import talk

            talk(conversation)
        else:
            for line in sys.stdin:
                if text := line.strip():
                    conversation.say(text)
