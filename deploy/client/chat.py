"""``trtstream chat``: talk to a served model in the terminal, or feed it one turn per line through a pipe."""

from __future__ import annotations

import secrets
import sys
from contextlib import closing, suppress
from pathlib import Path

import click

from trtstream.deploy.client.connect import connect, service_options
from trtstream.deploy.client.triton import Response, TritonClient
from trtstream.errors import TrtstreamError

MAX_TOKENS = 1024
LOST = ("conflict", "not_found")
"""Codes of errors that say that the server does not have the conversation that the client believes in."""
CONTROL_CHARACTERS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""What a model must not send to a terminal: it could write escape sequences."""


class Conversation:
    """A session on the server, and what this side knows of it: that it has seen ``session_tokens`` tokens.

    The number is ``exact`` in a new session and after a whole turn. After a cancelled turn, and for a session that is
    resumed (then it is 1), it is a lower bound, and only the answer shows whether the server still had the session.
    """

    def __init__(self, client: TritonClient, session_id: str | None, system: str | None) -> None:
        self.client = client
        self.system = system
        self.session_id, self.session_tokens, self.exact = session_id or "", 1, False
        if session_id is None:
            self.renew()
        else:
            self._announce()

    def renew(self) -> None:
        """Go on in a new session."""
        self.session_id, self.session_tokens, self.exact = secrets.token_urlsafe(16), 0, True
        self._announce()

    def say(self, text: str) -> None:
        """One turn: write the answer to stdout as it arrives. An interrupt cancels it on the server and is raised.

        Raises TrtstreamError; its code is one of `LOST` if the server no longer has the session as it was.
        """
        inputs = {
            "text_input": text,
            "chat": True,
            "system": self.system if self.session_tokens == 0 else None,
            "session_id": self.session_id,
            "session_tokens": self.session_tokens if self.exact else None,
            "max_tokens": MAX_TOKENS,
            "stream": True,
        }
        response = None
        try:
            with closing(self.client.generate(**inputs)) as responses:
                for response in responses:
                    self._show(response)
        except KeyboardInterrupt:
            # What the answer had so far stays in the session, unless it was cancelled before its first token.
            if self.session_tokens == 0 and response is None:
                self.renew()
            else:
                self.session_tokens, self.exact = max(1, self.session_tokens), False
            raise
        except TrtstreamError:
            if response is not None:
                # The server takes a failed turn back, and with the first one the session.
                self.exact = False
                if self.session_tokens == 0:
                    self.renew()
            raise
        finally:
            if response is not None:
                click.echo()
        assert response is not None  # `generate` raises rather than end without one
        self.session_tokens, self.exact = response.session_tokens, True
        if response.finish_reason == "length":
            click.echo(f"(the answer was cut at {MAX_TOKENS} tokens)", err=True)

    def _show(self, response: Response) -> None:
        if response.num_output_tokens == 1 and not self.exact:
            before = response.session_tokens - response.num_input_tokens
            if before < self.session_tokens:
                click.echo(f"(the server did not have session {self.session_id}: this is a new conversation)", err=True)
        click.echo(response.text.translate(CONTROL_CHARACTERS) if sys.stdout.isatty() else response.text, nl=False)

    def _announce(self) -> None:
        click.echo(self.client.session_note(self.session_id), err=True)


@click.command()
@service_options
@click.option("--session", "session_id", help="Come back to the conversation with this id.")
@click.option("--system", help="A system text for a new conversation; all of it stays in the model's sight.")
def chat(url: str, model_name: str, tls_ca: Path | None, session_id: str | None, system: str | None) -> None:
    """Chat with a served model. Ctrl-C cancels an answer, Ctrl-D ends the chat.

    Where stdin is no terminal every line is a turn, and stdout gets the answers alone.
    """
    if session_id and system:
        raise click.UsageError("--system is for a new conversation and --session for an old one; give one of them")
    with connect(url, model_name, tls_ca) as client:
        if session_id:
            client.require_resumable(session_id)
        conversation = Conversation(client, session_id, system)
        if sys.stdin.isatty():
            _talk(conversation)
        else:
            for line in sys.stdin:
                if text := line.strip():
                    conversation.say(text)


def _talk(conversation: Conversation) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  (gives input() its line editing)

    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D ends the chat)", err=True)
            continue
        if text:
            _answer(conversation, text)


def _answer(conversation: Conversation, text: str) -> None:
    try:
        conversation.say(text)
    except KeyboardInterrupt:
        click.echo("(cancelled)", err=True)
    except TrtstreamError as error:
        click.echo(f"trtstream: {error}", err=True)
        if error.code in LOST and click.confirm("Start a new conversation with this?", default=True, err=True):
            conversation.renew()
            _answer(conversation, text)
