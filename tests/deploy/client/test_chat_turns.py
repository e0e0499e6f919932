"""Chats that go back, ask again and fork, on a server with a session store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.deploy.client.test_terminal import CTRL_D, SHORT, send
from tests.deploy.client.test_terminal import chat as terminal
from tests.deploy.server import Server, serving
from trtstream.deploy.client.client import Client
from trtstream.deploy.client.conversation import Conversation
from trtstream.deploy.client.earlier import show_earlier
from trtstream.errors import TrtstreamError
from trtstream.sessions.turn_log import TurnLog

pytestmark = pytest.mark.triton
OPTIONS = {"max_tokens": 5, "ignore_eos": True}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("store") / "sessions.db")


@pytest.fixture(scope="module")
def server(engine: Path, store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    # So short a template leaves room for five letters in a quarter of this engine's ring.
    with serving(engine, log, "--session-store", store, "--recall-template", "{recalled} ") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.grpc_url) as client:
        yield client


@pytest.fixture
def chat(client: Client) -> Conversation:
    conversation = Conversation(client, options=OPTIONS)
    for text in ("one", "two"):
        conversation.say(text)
    return conversation


def kept(store: str, session_id: str) -> list[str | None]:
    """What the session's turns said."""
    with closing(TurnLog(store)) as log:
        head = log.head(session_id)
        return [] if head is None else [turn.prompt for turn in log.branch(head.id)]


def test_a_turn_is_taken_back(store: str, chat: Conversation, client: Client, capsys) -> None:
    assert chat.undo() == "two"
    capsys.readouterr()
    chat.say("three")
    assert kept(store, chat.session_id) == ["one", "three"]
    answer = capsys.readouterr().out
    straight = Conversation(client, options=OPTIONS)
    straight.say("one")
    capsys.readouterr()
    straight.say("three")
    assert capsys.readouterr().out == answer
    assert chat.undo() == "three"  # two at once
    before = chat.session_id
    assert chat.undo() == "one"
    chat.say("four")
    assert chat.session_id != before
    assert kept(store, chat.session_id) == ["four"]


def test_what_has_left_the_window_is_read_again(store: str, client: Client) -> None:
    for text in ("ox 7. It is so.", "a" * 80):
        client.answer(text_input=text, session_id="recall", **OPTIONS)
    answer = client.answer(text_input="ox?", session_id="recall", recall=8, **OPTIONS)
    assert answer.recalled == (1, 0, 5)
    with closing(TurnLog(store)) as log:
        head = log.head("recall")
        assert head is not None
        assert bytes([*head.tokens]).startswith(b"ox 7. ox?", 1)  # behind the pending token


def test_a_message_is_asked_again(store: str, chat: Conversation, capsys) -> None:
    chat.say(chat.undo())
    answer, first = capsys.readouterr().out.splitlines()[-1], chat.turns[-1].turn_id
    chat.say(chat.undo())
    assert capsys.readouterr().out.splitlines() == [answer]
    assert chat.turns[-1].turn_id != first
    assert kept(store, chat.session_id) == ["one", "two"]


def test_a_fork_leaves_the_session_as_it_is(store: str, chat: Conversation, capsys) -> None:
    before = chat.session_id
    chat.fork(f"{before} too")
    chat.say("three")
    assert kept(store, chat.session_id) == ["one", "two", "three"]
    assert kept(store, before) == ["one", "two"]
    chat.undo()
    chat.fork(before)  # a name that is taken, by a session that ends elsewhere
    chat.say("four")
    assert kept(store, before) == ["one", "two", "four"]
    chat.fork(f"{before} too")
    with pytest.raises(TrtstreamError, match="as its last turn") as error:
        chat.say("five")
    assert error.value.code == "conflict"


def test_without_its_earlier_turns_a_chat_goes_back_to_its_own(client: Client, chat: Conversation, capsys) -> None:
    resumed = Conversation(client, chat.session_id, options=OPTIONS)
    with pytest.raises(TrtstreamError, match="there is no turn yet"):
        resumed.undo()
    resumed.say("three")
    with pytest.raises(TrtstreamError, match="the turns before this chat are not known here"):
        resumed.undo()


def test_a_session_that_is_resumed_shows_its_turns(server: Server, store: str, chat: Conversation, capsys) -> None:
    with terminal(server, "--session", chat.session_id, "--session-store", store, *SHORT) as (screen, _):
        assert [line for line in screen.lines() if line.startswith("> ")] == ["> one", "> two"]
        for command, shown in (
            ("/undo", "(taken back: two)"),
            ("three", ""),
            ("/retry", "> three"),
            ("/session", ": three"),
            ("/fork", "/fork needs a name for the new session"),
            ("/fork other", "session other (come back to it with --session)"),
        ):
            send(screen, command)
            assert shown in "\n".join(screen.lines())
        screen.type(CTRL_D)
        assert screen.wait_for_exit() == 0
    assert kept(store, chat.session_id) == ["one", "three"]


def test_many_turns_are_shown_in_part(store: str, client: Client, capsys) -> None:
    conversation = Conversation(client, options={**OPTIONS, "max_tokens": 1})
    for number in range(12):
        conversation.say(f"message {number}")
    capsys.readouterr()
    turns = show_earlier(store, conversation.session_id)
    assert turns == conversation.turns
    shown = capsys.readouterr().err
    assert "(2 turns before these: `trtstream sessions show" in shown
    assert "message 2" in shown
    assert "message 1\n" not in shown
