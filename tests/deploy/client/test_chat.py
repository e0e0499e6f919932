from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys

import pytest

from tests.command_line import run_in_process, run_trtstream
from trtstream.deploy.client.chat import LOST, MAX_TOKENS, Conversation
from trtstream.deploy.client.client import Client
from trtstream.deploy.client.triton import new_session
from trtstream.errors import TrtstreamError

pytestmark = pytest.mark.triton


@pytest.fixture
def client(server):
    with Client(server.grpc_url) as client:
        yield client


def chat_turns(client: Client, session_id: str, *texts: str) -> str:
    """What the server answers to these turns, one per line."""
    answers = (
        client.answer(text_input=text, chat=True, session_id=session_id, max_tokens=MAX_TOKENS) for text in texts
    )
    return "".join(f"{answer.text}\n" for answer in answers)


def test_two_turns_through_a_pipe(server, client: Client) -> None:
    with new_session(client, "test") as session_id:
        expected = chat_turns(client, session_id, "Hello", "And then?")
    result = run_trtstream("chat", "--url", server.grpc_url, stdin="Hello\n\nAnd then?\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected


def test_a_session_goes_on_in_another_chat(server, client: Client) -> None:
    with new_session(client, "test") as session_id:
        expected = chat_turns(client, session_id, "Hello", "And then?")
    first = run_trtstream("chat", "--url", server.grpc_url, stdin="Hello\n")
    session_id = first.stderr.split()[1]
    second = run_trtstream("chat", "--url", server.grpc_url, "--session", session_id, stdin="And then?\n")
    assert first.stdout + second.stdout == expected
    assert "this is a new conversation" not in second.stderr


def test_a_session_id_that_the_server_does_not_know(server) -> None:
    result = run_trtstream("chat", "--url", server.grpc_url, "--session", "nobody-has-this-id", stdin="Hello\n")
    assert result.returncode == 0
    assert "the server did not have session nobody-has-this-id: this is a new conversation" in result.stderr


def test_a_lost_session_ends_a_piped_chat(server, client: Client) -> None:
    command = [sys.executable, "-m", "trtstream", "chat", "--url", server.grpc_url]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as chat:
        session_id = chat.stderr.readline().split()[1]
        chat.stdin.write("Hello\n")
        chat.stdin.flush()
        wait_for_session(client, session_id)
        client.answer(session_id=session_id, session_end=True)
        _, errors = chat.communicate("Are you there?\n", timeout=60)
    assert chat.returncode == 1
    assert f"trtstream: session '{session_id}' does not exist" in errors


def wait_for_session(client: Client, session_id: str) -> None:
    """Until the session's first turn has ended: then a wrong count is refused for its number."""
    for _ in range(2000):
        try:
            client.answer(input_ids=[1], session_id=session_id, session_tokens=1, max_tokens=1)
        except TrtstreamError as error:
            if error.code == "conflict":
                return
    pytest.fail("the session never answered")


def test_after_a_lost_session_a_new_one_can_begin(client: Client, capsys) -> None:
    conversation = Conversation(client, session_id=None, system=None)
    conversation.say("Hello")
    first = capsys.readouterr().out
    client.answer(session_id=conversation.session_id, session_end=True)
    with pytest.raises(TrtstreamError, match="does not exist") as caught:
        conversation.say("Hello")
    assert caught.value.code in LOST
    assert capsys.readouterr().out == ""
    conversation.renew()
    conversation.say("Hello")
    assert capsys.readouterr().out == first


class InterruptedStdout:
    """A terminal at which somebody presses Ctrl-C when the third piece of an answer appears."""

    def __init__(self) -> None:
        self.pieces = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.pieces += 1
        if self.pieces == 3:
            raise KeyboardInterrupt

    def flush(self) -> None:
        pass


def test_an_interrupted_answer_stays_in_the_session(client: Client, capsys, monkeypatch) -> None:
    conversation = Conversation(client, session_id=None, system=None)
    session_id = conversation.session_id
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", InterruptedStdout())
        with pytest.raises(KeyboardInterrupt):
            conversation.say("Hello")
    assert (conversation.session_id, conversation.exact) == (session_id, False)
    say_when_free(conversation, "Go on")
    assert conversation.exact
    assert "new conversation" not in capsys.readouterr().err


def say_when_free(conversation: Conversation, text: str) -> None:
    """The cancelled turn ends within a step: a moment later than the client that left it."""
    for _ in range(200):
        try:
            return conversation.say(text)
        except TrtstreamError as error:
            if error.code != "busy":
                raise
    pytest.fail("the cancelled turn still runs")


def test_chat_in_a_terminal(server, client: Client) -> None:
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-m", "trtstream", "chat", "--url", server.grpc_url]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as chat:
        os.close(theirs)
        try:
            session_id = read_until(terminal, "> ").split()[1]
            os.write(terminal, b"Hello\n")
            read_until(terminal, "\n> ")
            interrupt_until(chat, terminal, "(Ctrl-D ends the chat)")

            client.answer(session_id=session_id, session_end=True)
            os.write(terminal, b"Are you there?\n")
            read_until(terminal, "Start a new conversation with this?")
            os.write(terminal, b"y\n")
            assert session_id not in read_until(terminal, "(come back to it with --session)")
            read_until(terminal, "\n> ")
            os.write(terminal, b"\x04")
            assert chat.wait(timeout=60) == 0
        finally:
            chat.kill()
    os.close(terminal)


def read_until(terminal: int, expected: str, timeout: float = 60) -> str:
    seen = ""
    while expected not in seen:
        assert select.select([terminal], [], [], timeout)[0], f"waited for {expected!r} after {seen!r}"
        seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


def interrupt_until(chat: subprocess.Popen[bytes], terminal: int, expected: str) -> None:
    """Press Ctrl-C. One that comes just before readline waits for input is noticed only with the next."""
    for _ in range(20):
        chat.send_signal(signal.SIGINT)
        with contextlib.suppress(AssertionError):
            read_until(terminal, expected, timeout=3)
            return
    pytest.fail(f"{expected!r} never came")


def test_nothing_listens() -> None:
    result = run_trtstream("chat", "--url", "127.0.0.1:1", stdin="Hello\n")
    assert (result.returncode, result.stdout) == (1, "")
    assert "no Triton gRPC service answers at 127.0.0.1:1" in result.stderr


def test_system_belongs_to_a_new_conversation() -> None:
    result = run_in_process("chat", "--session", "x", "--system", "Be kind.")
    assert result.returncode == 2
    assert "give one of them" in result.stderr
