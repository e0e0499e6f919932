"""A turn whose connection is lost before its first token: the gateway sends it again, and there is one turn of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.deploy.server import Server
from trtstream.deploy.gateway.channel import OPTIONS
from trtstream.deploy.gateway.retries import run_until_answered
from trtstream.deploy.gateway.triton import TritonAddress, TritonService
from trtstream.deploy.http_front.readiness import Readiness, State
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnOutput, join
from trtstream.sessions.turn_log import TurnLog

pytestmark = pytest.mark.triton
READY = Readiness(State.READY)


@dataclass
class Cutter:
    """A TCP proxy that ends a connection when ``mark`` comes through it, the first ``times``, without passing it on."""

    target: tuple[str, int]
    mark: bytes
    times: int
    connections: list[asyncio.Task[None]] = field(default_factory=list)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(*self.target)
        tasks = [self._pump(reader, there[1]), self._pump(there[0], writer)]
        done = [asyncio.ensure_future(task) for task in tasks]
        await asyncio.wait(done, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, there[1]):
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()
        await asyncio.wait(done)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.times and self.mark in data:
                    self.times -= 1
                    return
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def cut(server: Server, mark: bytes, times: int) -> AsyncIterator[TritonService]:
    """A client of the server whose connection is cut."""
    host, port = server.grpc_url.split(":")
    cutter = Cutter((host, int(port)), mark, times)
    async with await asyncio.start_server(cutter.accept, host, 0) as proxy:
        url = f"{host}:{proxy.sockets[0].getsockname()[1]}"
        async with TritonService(TritonAddress(url, OPTIONS)) as client:
            yield client
        gc.collect()  # the error of a call that was lost holds it, and a call its connection
        await asyncio.wait(cutter.connections)
    assert not cutter.times, "nothing was tried"


async def ask(client: TritonService, **inputs: Any) -> TurnOutput:
    values = {"text_input": "Hello", "tenant": "t", "ignore_eos": True, **inputs}
    return join([output async for output in run_until_answered(client, "trtstream", values, READY)])


REQUEST, ANSWER = b"text_input", b"session_tokens"


@pytest.mark.parametrize(
    ("mark", "stream"),
    [(REQUEST, False), (ANSWER, False), (ANSWER, True)],
    ids=["before it arrives", "after it is kept", "in the middle of it"],
)
def test_a_turn_whose_connection_is_lost_is_there_once(server: Server, store: str, mark: bytes, stream: bool) -> None:
    session = f"lost {mark.decode()} {stream}"

    async def converse() -> list[TurnOutput]:
        answers: list[TurnOutput] = []
        for text in ("Hello", "And now?"):
            async with cut(server, mark, times=2) as client:
                parent = answers[-1].turn_id if answers else None
                turn = {"text_input": text, "parent_turn": parent, "max_tokens": 40, "stream": stream}
                answers.append(await ask(client, session_id=session, **turn))
        async with cut(server, b"", times=0) as client:
            for number, text in enumerate(("Hello", "And now?")):
                undisturbed = await ask(client, text_input=text, session_id=f"{session}, undisturbed", max_tokens=40)
                assert answers[number].token_ids == undisturbed.token_ids
        return answers

    answers = asyncio.run(converse())
    with contextlib.closing(TurnLog(store)) as log:
        head = log.head(f"t/{session}")
        assert head is not None
        assert [turn.id.hex() for turn in log.branch(head.id)] == [answer.turn_id for answer in answers]


def test_a_turn_that_is_told_again_has_its_log_probabilities(server: Server, store: str) -> None:
    """They are not kept: the turn is taken back, and made again."""

    async def run() -> None:
        for parent in (None, "the first"):
            async with cut(server, ANSWER, times=1) as client:
                options = {"parent_turn": parent and answers[0].turn_id, "return_log_probs": True, "max_tokens": 5}
                answers.append(await ask(client, session_id="told again", **options))

    answers: list[TurnOutput] = []
    asyncio.run(run())
    assert [len(answer.log_probs) for answer in answers] == [5, 5]
    with contextlib.closing(TurnLog(store)) as log:
        head = log.head("t/told again")
        assert head is not None
        assert [turn.id.hex() for turn in log.branch(head.id)] == [answer.turn_id for answer in answers]


def test_a_conversation_does_not_begin_anew_for_a_lost_connection(server: Server, store: str) -> None:
    async def run() -> None:
        async with cut(server, b"", times=0) as client:
            first.append(await ask(client, session_id="by name", max_tokens=4))
        async with cut(server, ANSWER, times=1) as client:
            with pytest.raises(TrtstreamError, match="conversation's items"):
                await ask(client, session_id="by name", max_tokens=200, stream=True)

    first: list[TurnOutput] = []
    asyncio.run(run())
    with contextlib.closing(TurnLog(store)) as log:
        head = log.head("t/by name")
        assert head is not None
        assert log.branch(head.id)[0].id.hex() == first[0].turn_id


def test_a_turn_of_which_something_was_heard_is_not_sent_again(server: Server) -> None:
    async def run() -> None:
        async with cut(server, b"length", times=1) as client:  # the last output's finish_reason
            with pytest.raises(TrtstreamError, match="went away"):
                await ask(client, session_id="heard", max_tokens=40, stream=True)

    asyncio.run(run())


def test_a_gateway_that_drains_does_not_wait_for_another_server(server: Server) -> None:
    async def run() -> None:
        async with cut(server, REQUEST, times=1) as client:
            turn = {"text_input": "a", "tenant": "t"}
            with pytest.raises(TrtstreamError, match="went away"):
                await anext(run_until_answered(client, "trtstream", turn, Readiness(State.DRAINING)))

    asyncio.run(run())
