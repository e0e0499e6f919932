"""What an answer writes in one pass of the event loop goes to its socket at once."""

from __future__ import annotations

import asyncio

from trtstream.deploy.http_front.joined_writes import MAX_BYTES, JoinedWrites


class Recorder(asyncio.Transport):
    """A transport that keeps what it is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(bytes(data))

    def close(self) -> None:
        self.calls.append("close")

    def is_closing(self) -> bool:
        return "close" in self.calls


def test_writes_of_one_pass_are_one() -> None:
    async def run() -> list[bytes | str]:
        transport = Recorder()
        joined = JoinedWrites(transport, asyncio.get_running_loop())
        joined.write(b"head")
        joined.write(b"body")
        assert transport.calls == []
        await asyncio.sleep(0)
        assert transport.calls == [b"headbody"]
        joined.write(b"end")
        await asyncio.sleep(0)
        return transport.calls

    assert asyncio.run(run()) == [b"headbody", b"end"]


def test_what_waits_is_written_before_the_end() -> None:
    async def run() -> list[bytes | str]:
        transport = Recorder()
        joined = JoinedWrites(transport, asyncio.get_running_loop())
        joined.write(b"answer")
        joined.close()
        assert joined.is_closing()
        await asyncio.sleep(0)
        return transport.calls

    assert asyncio.run(run()) == [b"answer", "close"]


def test_little_waits() -> None:
    async def run() -> list[bytes | str]:
        transport = Recorder()
        joined = JoinedWrites(transport, asyncio.get_running_loop())
        for _ in range(3):
            joined.write(bytes(MAX_BYTES // 2))
        return transport.calls

    assert [len(call) for call in asyncio.run(run())] == [MAX_BYTES // 2 * 3]
