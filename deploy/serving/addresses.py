"""The addresses that ``trtstream serve`` listens on."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

import click

from trtstream.errors import TrtstreamError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Addresses:
    """The addresses of the services: IPv4 addresses, and ports for gRPC, HTTP and metrics.

    ``triton_http_port`` is that of Triton's own HTTP service, on loopback behind the front. ``openai_port`` is the
    gateway's, None where there is none.
    """

    host: str
    metrics_host: str
    grpc_port: int
    http_port: int
    metrics_port: int
    triton_http_port: int
    openai_port: int | None = None

    @property
    def triton_http(self) -> str:
        """The URL of Triton's own HTTP service."""
        return f"http://{LOOPBACK}:{self.triton_http_port}"


def resolve(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        raise click.UsageError(f"--host is {host!r}; give an IPv4 address or a name that has one") from None


def choose_ports(
    host: str, metrics_host: str, grpc_port: int, http_port: int, metrics_port: int, openai_port: int | None = None
) -> Addresses:
    """Put free ports in place of zeros. Raises TrtstreamError for a port that is in use."""
    ports: list[int] = []
    with contextlib.ExitStack() as bound:  # all at the same time, so that they differ
        for name, address, port in (
            ("--grpc-port", host, grpc_port),
            ("--http-port", host, http_port),
            ("--metrics-port", metrics_host, metrics_port),
            ("a port", LOOPBACK, 0),
            ("--openai-port", host, openai_port),
        ):
            if port is None:
                continue
            probe = bound.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
                probe.listen()
            except OSError as error:
                raise TrtstreamError(
                    f"{name} {port} on {address} cannot be used ({error.strerror}); choose another"
                ) from None
            ports.append(probe.getsockname()[1])
    return Addresses(host, metrics_host, *ports)
