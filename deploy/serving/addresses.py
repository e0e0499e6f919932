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
    """The addresses of the services: IPv4 addresses, and ports for gRPC, HTTP and metrics."""

    grpc_host: str
    http_host: str
    grpc_port: int
    http_port: int
    metrics_port: int

    def http_url(self) -> str:
        """The HTTP service, as this machine reaches it."""
        host = LOOPBACK if self.http_host == "0.0.0.0" else self.http_host
        return f"http://{host}:{self.http_port}"


def resolve(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        raise click.UsageError(f"--host is {host!r}; give an IPv4 address or a name that has one") from None


def choose_ports(grpc_host: str, http_host: str, grpc_port: int, http_port: int, metrics_port: int) -> Addresses:
    """Put free ports in place of zeros. Raises TrtstreamError for a port that is in use."""
    ports: list[int] = []
    with contextlib.ExitStack() as bound:  # all at the same time, so that they differ
        for name, host, port in (
            ("--grpc-port", grpc_host, grpc_port),
            ("--http-port", http_host, http_port),
            ("--metrics-port", http_host, metrics_port),
        ):
            probe = bound.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen()
            except OSError as error:
                raise TrtstreamError(
                    f"{name} {port} on {host} cannot be used ({error.strerror}); choose another"
                ) from None
            ports.append(probe.getsockname()[1])
    return Addresses(grpc_host, http_host, *ports)
