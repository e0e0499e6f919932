from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.command_line import run_in_process, run_trtstream
from trtstream.deploy.client.client import Client
from trtstream.deploy.client.conversation import LOST, MAX_TOKENS, Conversation
from trtstream.deploy.client.triton import new_session
from trtstream.errors import TrtstreamError

pytestmark = pytest.mark.triton


@pytest.fixture
def client(server):
    with Client(server.grpc_url) as client:
        yield client


def chat_turns(client: Client, session_id: str, *texts: str) -> str:
    """The server's answers to these turns, one per line."""
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


def test_a_session_continues_in_another_chat(server, client: Client) -> None:
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
    assert re.search(
        r"^trtstream: turn \w{32} does not exist, or not in this conversation; it was", errors, re.MULTILINE
    )


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
    conversation = Conversation(client)
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
    conversation = Conversation(client)
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


def test_options_of_sampling(server, client: Client) -> None:
    options = {"max_tokens": 6, "temperature": 0.9, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}
    with new_session(client, "test") as session_id:
        turn = {"chat": True, "session_id": session_id, "random_seed": 7, "stop_words": ["no", "such"], **options}
        expected = client.answer(text_input="Hello", **turn)
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    more = ("--seed", 7, "--stop", "no", "--stop", "such")
    result = run_trtstream("chat", "--url", server.grpc_url, *words, *more, stdin="Hello\n")
    assert result.stdout == f"{expected.text}\n"
    assert expected.num_output_tokens == 6
    assert result.stderr.endswith("(the answer was cut at 6 tokens)\n")


@pytest.mark.parametrize("option", [("--top-p", 0), ("--temperature", -1), ("--top-k", -1), ("--max-tokens", 0)])
def test_options_that_no_server_takes(option: tuple[str, object]) -> None:
    result = run_in_process("chat", *option)
    assert result.returncode == 2
    assert f"Invalid value for '{option[0]}'" in result.stderr


def test_nothing_listens() -> None:
    result = run_trtstream("chat", "--url", "127.0.0.1:1", stdin="Hello\n")
    assert (result.returncode, result.stdout) == (1, "")
    assert "no Triton gRPC service answers at 127.0.0.1:1" in result.stderr


def test_system_belongs_to_a_new_conversation() -> None:
    result = run_in_process("chat", "--session", "x", "--system", "Be kind.")
    assert result.returncode == 2
    assert "give one of them" in result.stderr
