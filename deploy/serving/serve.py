"""``trtstream serve``: a real Triton in the foreground, from the first check of its ports to a clean drain."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import queue
import re
import signal
import socket
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from trtstream.deploy.serving import environment
from trtstream.deploy.serving.drain import DrainSocket
from trtstream.deploy.serving.environment import SERVICE_LIMITS
from trtstream.deploy.serving.package import DEFAULT_MODEL_NAME, model_names, write_model
from trtstream.deploy.serving.tritonserver import TritonProcess, find_tritonserver
from trtstream.deploy.tensorrt_llm.launch import MODEL, find_built_engine, require_backend
from trtstream.engine_dir import CONFIG, check_runnable, read_engine
from trtstream.errors import TrtstreamError

LOOPBACK = "127.0.0.1"
CLOSED_APIS = "model-repository,shared-memory,trace,logging"
# A header that a request must have for these APIs, with a line break in its value, so that no request can.
CLOSED = f"{CLOSED_APIS}:closed-by-trtstream=no\nrequest"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXITED = "exited"
READY_POLL_SECONDS = 0.1
PORT = click.IntRange(0, 65535)
PEM_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


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


@click.command()
@click.argument("source", metavar="ENGINE|MODEL_REPO", type=click.Path(path_type=Path))
@click.option("--host", default=LOOPBACK, show_default=True, help="Address to listen on.")
@click.option("--grpc-port", default=8001, show_default=True, type=PORT, help="Port for gRPC; 0 takes a free one.")
@click.option("--http-port", default=8000, show_default=True, type=PORT, help="Port for HTTP; 0 takes a free one.")
@click.option(
    "--metrics-port", default=8002, show_default=True, type=PORT, help="Port for metrics; 0 takes a free one."
)
@click.option("--tls-cert", type=PEM_FILE, help="Serve gRPC over TLS with this certificate (PEM).")
@click.option("--tls-key", type=PEM_FILE, help="The certificate's private key (PEM).")
@click.option("--insecure", is_flag=True, help="Let all services leave this machine without encryption.")
@click.option(
    "--drain-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds that running turns have to end when the server is stopped.",
)
@click.option(
    "--max-tokens-limit",
    default=SERVICE_LIMITS.max_tokens_limit,
    show_default=True,
    type=click.IntRange(min=1),
    help="The most tokens that a turn may ask for.",
)
@click.option(
    "--turn-timeout",
    default=SERVICE_LIMITS.turn_timeout,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that a turn may take; a request's own timeout may be shorter.",
)
@click.option(
    "--max-itl-ms",
    default=SERVICE_LIMITS.max_itl_ms,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Milliseconds between an answer's tokens while a prompt is fed next to it.",
)
def serve(
    source: Path,
    host: str,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    drain_timeout: float,
    max_tokens_limit: int,
    turn_timeout: float,
    max_itl_ms: float,
) -> None:
    """Serve an engine, or a model repository that `trtstream package` wrote, on Triton Inference Server.

    Runs in the foreground and prints one line to stdout when the server is ready. Ctrl-C or SIGTERM lets running turns
    end and stops; a second one stops at once.

    On another --host than this machine's own, gRPC needs --tls-cert and --tls-key (HTTP and metrics have no TLS here
    and stay on 127.0.0.1) or --insecure; and session ids must have 16 characters or more.
    """
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    host = _resolve(host)
    public = not ipaddress.ip_address(host).is_loopback
    if public and not (tls_cert or insecure):
        raise click.UsageError(
            f"--host {host} lets others reach the server: give --tls-cert and --tls-key, or --insecure if that is meant"
        )
    addresses = _choose_ports(host, host if insecure or not public else LOOPBACK, grpc_port, http_port, metrics_port)
    events: queue.SimpleQueue[str] = queue.SimpleQueue()  # whose put() may be called in a signal handler
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: events.put(signal.Signals(number).name))

    with tempfile.TemporaryDirectory(prefix="trtstream-") as folder:
        work = Path(folder)
        installation = find_tritonserver(work)
        repository = _repository(source, work)
        models = model_names(repository)
        arguments = _arguments(repository, addresses, tls_cert, tls_key)
        options: dict[str, Any] = {}
        if engine := find_built_engine(repository):
            require_backend(installation.binary, installation.environment["PATH"], engine)
            # Its models know no drain socket: Triton itself waits for requests in flight.
            options = {
                "folder": repository,
                "exit_seconds": drain_timeout,
                "ranks": engine.world_size,
                "ranked_model": MODEL,
            }
        with DrainSocket(work) as models_socket:
            limits = {"max_tokens_limit": max_tokens_limit, "turn_timeout": turn_timeout, "max_itl_ms": max_itl_ms}
            variables = {
                environment.DRAIN_SOCKET: str(models_socket.path),
                environment.PUBLIC: str(int(public)),
                environment.LIMITS: json.dumps(limits),
            }
            with TritonProcess(installation, arguments, variables, lambda: events.put(EXITED), **options) as triton:
                click.echo(f"starting Triton with {source}", err=True)
                event = _wait_until_ready(addresses.http_url(), events)
                if event is None:
                    triton.show_log()
                    click.echo(_ready_line(addresses, models))
                    event = events.get()
                if event == EXITED:
                    raise _death(triton)
                _stop(triton, models_socket, event, drain_timeout)


def _resolve(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        raise click.UsageError(f"--host is {host!r}; give an IPv4 address or a name that has one") from None


def _choose_ports(grpc_host: str, http_host: str, grpc_port: int, http_port: int, metrics_port: int) -> Addresses:
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


def _repository(source: Path, work: Path) -> Path:
    """``source`` if it is a model repository; for an engine, a repository in ``work`` that points to it."""
    if not source.is_dir():
        raise TrtstreamError(f"{source} is not a folder; give an engine or a model repository")
    if not (source / CONFIG).exists():
        if not model_names(source):
            raise TrtstreamError(f"{source} is neither an engine nor a model repository; see `trtstream package`")
        return source.resolve()
    repository, config = work / "model_repository", read_engine(source)
    check_runnable(source, config)  # before Triton starts and finds out
    write_model(repository / DEFAULT_MODEL_NAME, DEFAULT_MODEL_NAME, config, str(source.resolve()))
    return repository


def _arguments(repository: Path, addresses: Addresses, tls_cert: Path | None, tls_key: Path | None) -> list[str]:
    gpu = Path("/dev/nvidiactl").exists()
    arguments = [
        f"--model-repository={repository}",
        "--model-control-mode=none",
        f"--http-restricted-api={CLOSED}",
        f"--grpc-restricted-protocol={CLOSED}",
        f"--grpc-address={addresses.grpc_host}",
        f"--grpc-port={addresses.grpc_port}",
        f"--http-address={addresses.http_host}",
        f"--http-port={addresses.http_port}",
        f"--metrics-address={addresses.http_host}",
        f"--metrics-port={addresses.metrics_port}",
        f"--allow-gpu-metrics={str(gpu).lower()}",
        "--pinned-memory-pool-byte-size=0",  # the model's tensors are on the CPU and small
        "--log-info=false",
    ]
    if tls_cert:
        arguments += ["--grpc-use-ssl=true", f"--grpc-server-cert={tls_cert}", f"--grpc-server-key={tls_key}"]
    return arguments


def _wait_until_ready(url: str, events: queue.SimpleQueue[str]) -> str | None:
    """Wait for Triton and all its models to be ready; returns the event that came first, if one did."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    while True:
        with contextlib.suppress(queue.Empty):
            return events.get(timeout=READY_POLL_SECONDS)
        with contextlib.suppress(OSError, http.client.HTTPException), opener.open(f"{url}/v2/health/ready", timeout=1):
            return None


def _ready_line(addresses: Addresses, models: list[str]) -> str:
    return (
        f"ready: grpc={addresses.grpc_host}:{addresses.grpc_port} http={addresses.http_host}:{addresses.http_port} "
        f"metrics={addresses.http_host}:{addresses.metrics_port} models={','.join(models)}"
    )


def _death(triton: TritonProcess) -> TrtstreamError:
    """Why Triton exited by itself: the model's error if it gave one, else the last lines of the log."""
    tail = triton.tail()
    reason = re.search(r"failed to load .*TrtstreamError: (.*?)(\\n|\"?$)", "\n".join(tail), re.MULTILINE)
    if reason:
        return TrtstreamError(reason[1])
    click.echo("\n".join(tail), err=True)
    return TrtstreamError(f"tritonserver exited with code {triton.exit_code}; its last lines are above")


def _stop(triton: TritonProcess, models: DrainSocket, event: str, drain_timeout: float) -> None:
    def kill_now(number: int, frame: object) -> None:
        raise click.Abort

    for number in STOP_SIGNALS:
        signal.signal(number, kill_now)
    click.echo(f"{event}: draining; once more to stop at once", err=True)
    drained = models.drain(drain_timeout)
    triton.stop()
    if not drained:
        raise TrtstreamError(f"turns were still running after --drain-timeout {drain_timeout:g} s and were cut short")
    click.echo("stopped", err=True)
