"""A conversation with a served model: its turns, this side's knowledge of its session, and its answers on stdout."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import click

from trtstream.deploy.client.triton import Response, TritonClient
from trtstream.errors import TrtstreamError
from trtstream.terminal_text import for_stdout

MAX_TOKENS = 1024
LOST = ("conflict", "not_found")
"""Codes of errors that say that the server does not have the conversation that the client believes in."""


@dataclass(frozen=True)
class PastTurn:
    """A turn that was answered, or the beginning of it. ``session_tokens``: after it, None where that is not known."""

    turn_id: str
    text: str
    session_tokens: int | None


class Conversation:
    """A session on the server, and this side's belief about it: that it has seen ``session_tokens`` tokens.

    The number is ``exact`` in a new session and after a complete turn. After a cancelled turn, and for a session that
    is resumed (then it is 1), it is a lower bound, and only the answer shows whether the server still had the session.
    ``turns`` are those that are known here, where the server names its turns; in a session that is resumed they begin
    with ``earlier``, all its turns so far, if they are given. Each turn says which one it continues.
    ``options`` are inputs that every turn gets: see `request_fields.INPUTS`.
    """

    def __init__(
        self,
        client: TritonClient,
        session_id: str | None = None,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        earlier: Sequence[PastTurn] = (),
    ) -> None:
        self.client = client
        self.system = system
        self.options = {"max_tokens": MAX_TOKENS, **(options or {})}
        self.session_id, self.session_tokens, self.exact = session_id or "", 1, False
        self.turns = [*earlier]
        self._has_all_turns = bool(earlier)
        self._goes_back = False
        if session_id is None:
            self.renew()
        else:
            self.announce()

    def renew(self) -> None:
        """Continue in a new session."""
        self.session_id, self.session_tokens, self.exact = secrets.token_urlsafe(16), 0, True
        self.turns, self._has_all_turns, self._goes_back = [], True, False
        self.announce()

    def undo(self) -> str:
        """Take the last turn back: the next one continues before it. Returns its text.

        Where it was the first, the conversation begins again in a new session. Raises TrtstreamError if there is no
        turn, or if the one before it is not known here.
        """
        last = self._last_turn()
        if len(self.turns) > 1:
            self.turns.pop()
            self._goes_back = True
            before = self.turns[-1].session_tokens
            self.session_tokens, self.exact = before or 1, before is not None
        elif self._has_all_turns:
            self.renew()
        else:
            raise TrtstreamError(
                f"the turns before this chat are not known here; trtstream chat --session {self.session_id} "
                "--session-store knows them"
            )
        return last.text

    def fork(self, session_id: str) -> None:
        """Continue in a new session of this name, which has all turns so far; the old one stays as it is."""
        self._last_turn()
        self.session_id, self._goes_back = session_id, False
        self.announce()

    def _last_turn(self) -> PastTurn:
        if not self.turns:
            raise TrtstreamError("there is no turn yet, or this service does not name its turns")
        return self.turns[-1]

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
            "parent_turn": self.turns[-1].turn_id if self.turns else None,
            "session_rewind": self._goes_back or None,
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
            if response is not None:
                self._add(PastTurn(response.turn_id, text, None))
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
        self._add(PastTurn(response.turn_id, text, response.session_tokens))
        if response.finish_reason == "length":
            click.echo(f"(the answer was cut at {self.options['max_tokens']} tokens)", err=True)

    def _add(self, turn: PastTurn) -> None:
        self._goes_back = False
        self.turns += [turn] if turn.turn_id else []

    def _show(self, response: Response) -> None:
        if response.num_output_tokens == 1 and not self.exact:
            before = response.session_tokens - response.num_input_tokens
            if before < self.session_tokens:
                click.echo(f"(the server did not have session {self.session_id}: this is a new conversation)", err=True)
        click.echo(for_stdout(response.text), nl=False)

    def announce(self) -> None:
        """Say which session this is."""
        click.echo(self.client.session_note(self.session_id), err=True)
