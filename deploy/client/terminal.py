"""``trtstream chat`` in a terminal: a line editor for the turns, and commands that begin with a slash."""

from __future__ import annotations

import re
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from trtstream.deploy.client.conversation import LOST, Conversation
from trtstream.errors import TrtstreamError, printable
from trtstream.extras import require_extra

HELP = """\
Enter      send the message
Alt-Enter  a new line in the message (or Esc, then Enter); pasted lines stay one message
Up, Down   earlier messages
Ctrl-C     cancel the answer, or clear the line
Ctrl-D     end the chat
/undo      take the last turn back: the next message continues before it
/retry     ask the last message again (with --temperature above 0 for another answer)
/fork NAME continue in a new session NAME; this one stays as it is
/session   show the session and its last turn
/new       begin a new conversation
/quit      end the chat
/help      these lines"""
LINE = 60  # characters of a message, where only its beginning is shown
COMMAND = re.compile(r"/\w*|/fork\s+\S+")


def talk(conversation: Conversation) -> None:
    """Take turns from the terminal until the user ends the chat. What they type during an answer waits for its end."""
    require_extra("prompt_toolkit", "client", "chat in a terminal")
    editor = _Editor()
    click.echo("/help shows keys and commands", err=True)
    with _no_echo():
        while True:
            try:
                text = editor.read("> ").strip()
            except KeyboardInterrupt:
                click.echo("(Ctrl-D ends the chat)", err=True)
                continue
            except EOFError:
                return
            if text == "/quit":
                return
            if COMMAND.fullmatch(text):
                _obey(conversation, text, editor)
            elif text:
                _answer(conversation, text, editor)


def _obey(conversation: Conversation, command: str, editor: _Editor) -> None:
    try:
        match command.split():
            case ["/new"]:
                conversation.renew()
            case ["/undo"]:
                click.echo(f"(taken back: {_first_line(conversation.undo())})", err=True)
            case ["/retry"]:
                text = conversation.undo()
                click.echo(f"> {text}", err=True)
                _answer(conversation, text, editor)
            case ["/fork", name]:
                conversation.fork(name)
            case ["/fork"]:
                click.echo("/fork needs a name for the new session", err=True)
            case ["/session"]:
                conversation.announce()
                for turn in conversation.turns[-1:]:
                    click.echo(f"turn {turn.turn_id}: {_first_line(turn.text)}", err=True)
            case ["/help"]:
                click.echo(HELP, err=True)
            case _:
                click.echo(f"{command} is not a command; /help lists them", err=True)
    except TrtstreamError as error:
        click.echo(f"trtstream: {error}", err=True)


def _first_line(text: str) -> str:
    line = printable(next(iter(text.splitlines()), ""))
    return line if len(line) <= LINE else f"{line[:LINE]} ..."


def _answer(conversation: Conversation, text: str, editor: _Editor) -> None:
    try:
        conversation.say(text)
    except KeyboardInterrupt:
        click.echo("(cancelled)", err=True)
    except TrtstreamError as error:
        click.echo(f"trtstream: {error}", err=True)
        if error.code in LOST and editor.agrees("Start a new conversation with this?"):
            conversation.renew()
            _answer(conversation, text, editor)


class _Editor:
    """Reads from the terminal, with history and lines of any number. The prompt never goes into a redirected stdout."""

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.output import create_output

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        output = create_output(always_prefer_tty=True)
        self._messages: Any = PromptSession(key_bindings=keys, output=output, prompt_continuation="  ")
        self._questions: Any = PromptSession(output=output)

    def read(self, prompt: str) -> str:
        """A message. Raises KeyboardInterrupt at Ctrl-C and EOFError at Ctrl-D."""
        return self._messages.prompt(prompt)

    def agrees(self, question: str) -> bool:
        """Whether the user says yes, which Enter does too."""
        try:
            return self._questions.prompt(f"{question} [Y/n] ").strip().lower() in ("", "y", "yes")
        except (KeyboardInterrupt, EOFError):
            return False


@contextmanager
def _no_echo() -> Iterator[None]:
    """Between prompts, the terminal keeps what is typed for the next one and does not show it. Ctrl-C works as ever."""
    before = termios.tcgetattr(sys.stdin)
    silent = termios.tcgetattr(sys.stdin)
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
