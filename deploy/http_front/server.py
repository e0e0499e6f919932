"""Runs an application, the front or the gateway, in a thread of ``trtstream serve``."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from http import HTTPStatus
from pathlib import Path

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from trtstream.deploy.http_front.joined_writes import JoinedWrites
from trtstream.deploy.http_front.limits import (
    HEADER_SECONDS,
    IDLE_SECONDS,
    LINGER_SECONDS,
    MAX_CONNECTIONS,
    MAX_HEADER_BYTES,
    WRITE_SECONDS,
)
from trtstream.errors import TrtstreamError

STOP_SECONDS = 2  # for responses that are under way when the front is stopped


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself waits without limit: for a request's headers, and for answers to be read.

    Beyond the limit of connections it ends those that wait.
    """

    _due: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _refused = False
    _heard = 0.0  # when its client last sent something

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(JoinedWrites(transport, self.loop))
        self._heard = self.loop.time()
        self._expect_headers()
        if len(self.connections) >= MAX_CONNECTIONS:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        if self._refused:  # what still comes is not read, but closing under it would take the answer away
            return
        super().data_received(data)
        if self._is_answering():
            self._stop_waiting()
        else:
            self._expect_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_answering():  # a request that was sent ahead
            self._stop_waiting()
        elif self.conn.trailing_data[0]:  # the start of one
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_waiting_for_reader()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP, in Triton's shape; h11's error, which is being handled, knows the reason and the status."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        reason = f"not a valid HTTP request ({error})"
        if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            reason = f"the request's headers have more than {MAX_HEADER_BYTES} bytes, which is the limit"
        body = json.dumps({"error": reason}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer is under way
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self._refused = True
        self._stop_waiting()
        self._due = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _stop_waiting_for_reader(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _make_room(self) -> None:
        """End the connection whose request is awaited for the longest: whoever sends none keeps nobody else out."""
        others = [one for one in self.connections if isinstance(one, PatientProtocol) and one is not self]
        waiting = [one for one in others if one._is_waiting() and not one.transport.is_closing()]
        if waiting:
            min(waiting, key=lambda one: one._heard).transport.close()

    def _is_waiting(self) -> bool:
        """For a request, or for the rest of one."""
        return not self._is_answering() or self.cycle.more_body

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_headers(self) -> None:
        if self._due is None:
            self._due = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _give_up(self) -> None:
        if not self._is_answering():
            self.transport.close()


class HttpServer:
    """``app`` at ``host:port``, where ``option`` says. With ``tls`` (certificate, key: PEM files) it speaks HTTPS.

    Listens when the context is entered. Raises TrtstreamError if it cannot.
    """

    def __init__(
        self, app: Starlette, host: str, port: int, tls: tuple[Path, Path] | None = None, option: str = "--http-port"
    ) -> None:
        certificate, key = tls or (None, None)
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=PatientProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        try:
            config.load()
        except OSError as error:
            raise TrtstreamError(f"--tls-cert {certificate} with --tls-key {key} cannot be used: {error}") from error
        self._server = uvicorn.Server(config)
        # asyncio turns Nagle's algorithm off for sockets that say they are TCP's. Else what follows an answer's head
        # waits up to 40 ms, until the client's kernel acknowledges the head.
        self._socket = socket.socket(proto=socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise TrtstreamError(f"{option} {port} on {host} cannot be used ({error.strerror})") from error
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name=f"trtstream{option[1:-5]}", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that it listens on; a free one for 0."""
        return int(self._socket.getsockname()[1])

    def __enter__(self) -> HttpServer:
        self._socket.listen(MAX_CONNECTIONS)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(2 * STOP_SECONDS)
        self._socket.close()
