"""``trtstream chat`` as its user sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.deploy.client.screen import Screen
from tests.deploy.server import Server
from trtstream.deploy.client.client import Client
from trtstream.errors import TrtstreamError

pytestmark = pytest.mark.triton

ENTER, ALT_ENTER, CTRL_C, CTRL_D = "\r", "\x1b\r", "\x03", "\x04"
MAX_TOKENS = 3
SHORT = ("--max-tokens", str(MAX_TOKENS))
LONG = ("--repetition-penalty", "0.5")  # likes its own tokens so much that no other ends the answer


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.grpc_url) as client:
        yield client


@contextmanager
def chat(server: Server, *options: str) -> Iterator[tuple[Screen, str]]:
    """(The terminal of a chat that waits for its first message, the session's id)."""
    with Screen("chat", "--url", server.grpc_url, *options) as screen:
        screen.wait_for("/help shows keys and commands", ">")
        yield screen, session_of(screen)


def session_of(screen: Screen) -> str:
    return re.findall(r"session (\S+)\s+\(come back", "\n".join(screen.lines()))[-1]


def send(screen: Screen, message: str) -> None:
    """Send a message, and wait for the next prompt."""
    screen.type(message)
    screen.wait_for(f" {message}")
    screen.type(ENTER)
    screen.wait_for("\n>")


def assert_seen(client: Client, session_id: str, message: str) -> None:
    """The session has had this message and its answer, and nothing else."""
    answer = client.answer(text_input=message, chat=True, max_tokens=MAX_TOKENS)
    with pytest.raises(TrtstreamError) as refused:
        client.answer(input_ids=[1], session_id=session_id, session_tokens=1, max_tokens=1)
    assert f"has seen {answer.session_tokens} tokens" in str(refused.value)


def test_a_conversation(server: Server, client: Client) -> None:
    with chat(server, *SHORT) as (screen, session_id):
        send(screen, "Hello")
        assert_seen(client, session_id, "Hello")
        screen.type("Are you" + CTRL_C)
        screen.wait_for("(Ctrl-D ends the chat)", ">")
        client.answer(session_id=session_id, session_end=True)
        screen.type("Are you there?" + ENTER)
        screen.wait_for("Start a new conversation with this? [Y/n]")
        send(screen, "y")
        renewed = session_of(screen)
        assert renewed != session_id
        assert_seen(client, renewed, "Are you there?")
        screen.type(CTRL_D)
        assert screen.wait_for_exit() == 0


def test_a_pasted_text_is_one_message(server: Server, client: Client) -> None:
    with chat(server, *SHORT) as (screen, session_id):
        screen.type("\x1b[200~one\r\ntwo\nthree\x1b[201~")
        screen.wait_for("> one", "  two", "  three")
        screen.type(ENTER)
        screen.wait_for("\n>")
        assert_seen(client, session_id, "one\ntwo\nthree")


def test_a_message_of_several_lines(server: Server, client: Client) -> None:
    with chat(server, *SHORT) as (screen, session_id):
        screen.type("one" + ALT_ENTER + "two")
        screen.wait_for("> one", "  two")
        screen.type(ENTER)
        screen.wait_for("\n>")
        assert_seen(client, session_id, "one\ntwo")
        screen.type("\x1b[A")  # the message before, with both lines
        screen.wait_for("> one", "  two")


def begin_answer(screen: Screen) -> None:
    """Send a message, and see the beginning of the answer."""
    before = len("".join(screen.lines()))
    screen.type("Hello" + ENTER)
    screen.wait_until(lambda lines: len("".join(lines)) > before + 50)


def test_what_is_typed_during_an_answer_waits_for_the_next_prompt(server: Server) -> None:
    with chat(server, *LONG, "--max-tokens", "2000") as (screen, _):
        begin_answer(screen)
        screen.type("not yet")
        for _ in range(20):
            screen.read()
        assert "not yet" not in "".join(screen.lines())
        screen.wait_for("(the answer was cut at 2000 tokens)", "> not yet")
        assert "".join(screen.lines()).count("not yet") == 1


def test_an_answer_is_cancelled(server: Server) -> None:
    with chat(server, *LONG, "--max-tokens", "1000000") as (screen, _):
        begin_answer(screen)
        screen.type(CTRL_C)
        screen.wait_for("(cancelled)", ">")
        screen.type(CTRL_D)
        assert screen.wait_for_exit() == 0


def test_commands(server: Server) -> None:
    with chat(server) as (screen, session_id):
        screen.type("/help" + ENTER)
        screen.wait_for("/help      these lines", ">")
        assert any("Alt-Enter" in line for line in screen.lines())
        screen.type("/halp" + ENTER)
        screen.wait_for("/halp is not a command; /help lists them", ">")
        screen.type("/new" + ENTER)
        screen.wait_for("(come back to it with --session)", ">")
        assert session_of(screen) != session_id
        screen.type("/quit" + ENTER)
        assert screen.wait_for_exit() == 0
