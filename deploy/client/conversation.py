"""A conversation with a served model: its turns, this side's knowledge of its session, and its answers on stdout."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import click

from trtstream.deploy.client.triton import Response, TritonClient
from trtstream.errors import TrtstreamError
from trtstream.terminal_text import for_stdout

MAX_TOKENS = 1024
LOST = ("conflict", "not_found")
"""Codes of errors that say that the server does not have the conversation that the client believes in."""


class Conversation:
    """A session on the server, and this side's belief about it: that it has seen ``session_tokens`` tokens.

    The number is ``exact`` in a new session and after a complete turn. After a cancelled turn, and for a session that
    is resumed (then it is 1), it is a lower bound, and only the answer shows whether the server still had the session.
    ``options`` are inputs that every turn gets: see `request_fields.INPUTS`.
    """

    def __init__(
        self,
        client: TritonClient,
        session_id: str | None = None,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.client = client
        self.system = system
        self.options = {"max_tokens": MAX_TOKENS, **(options or {})}
        self.session_id, self.session_tokens, self.exact = session_id or "", 1, False
        if session_id is None:
            self.renew()
        else:
            self._announce()

    def renew(self) -> None:
        """Continue in a new session."""
        self.session_id, self.session_tokens, self.exact = secrets.token_urlsafe(16), 0, True
        self._announce()

    def say(self, text: str) -> None:
        """One turn: write the answer to stdout as it arrives. An interrupt cancels it on the server and is raised.

        Raises TrtstreamError; its code is one of `LOST` if the server no longer has the session as it was.
        """
        inputs = {
            **self.options,
            "text_input": text,
            "chat": True,
            "system": self.system if self.session_tokens == 0 else None,
            "session_id": self.session_id,
            "session_tokens": self.session_tokens if self.exact else None,
            "stream": True,
        }
        response = None
        try:
            with closing(self.client.generate(**inputs)) as responses:
                for response in responses:
                    self._show(response)
        except KeyboardInterrupt:
            # The beginning of the answer stays in the session, unless it was cancelled before its first token.
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
            click.echo(f"(the answer was cut at {self.options['max_tokens']} tokens)", err=True)

    def _show(self, response: Response) -> None:
        if response.num_output_tokens == 1 and not self.exact:
            before = response.session_tokens - response.num_input_tokens
            if before < self.session_tokens:
                click.echo(f"(the server did not have session {self.session_id}: this is a new conversation)", err=True)
        click.echo(for_stdout(response.text), nl=False)

    def _announce(self) -> None:
        click.echo(self.client.session_note(self.session_id), err=True)
