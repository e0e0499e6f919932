"""``trtstream gateway``: OpenAI's protocols as a process of its own, in front of a Triton; and its keys."""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trtstream.deploy.client.client import DEFAULT_MODEL, Client
from trtstream.deploy.client.triton import DEFAULT_URL
from trtstream.deploy.gateway.access import Access, access_options
from trtstream.deploy.gateway.keys import add_key, read_keys, revoke_key
from trtstream.deploy.http_front.readiness import Readiness, State
from trtstream.deploy.serving.addresses import LOOPBACK, resolve
from trtstream.deploy.serving.environment import SESSION_STORE
from trtstream.deploy.serving.supervisor import stop_events
from trtstream.errors import TrtstreamError
from trtstream.extras import require_extra

if TYPE_CHECKING:
    from trtstream.deploy.gateway.admission import Shares
    from trtstream.deploy.serving.supervisor import Events

PROBE_SECONDS = 1.0  # between two looks at Triton
PROBE_TIMEOUT = 5.0
PEM_FILE = click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True)
KEY_FILE = click.option(
    "--file",
    "path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file of keys, as --api-key-file has it.",
)


@click.group(invoke_without_command=True)
@click.option("--triton", default=DEFAULT_URL, show_default=True, help="host:port of Triton's gRPC service.")
@click.option("--triton-tls-ca", type=PEM_FILE, help="Reach Triton over TLS, trusting this file's certificates (PEM).")
@click.option("--model-name", "models", multiple=True, default=[DEFAULT_MODEL], show_default=True, help="The models.")
@click.option("--host", default=LOOPBACK, show_default=True, help="Address to listen on.")
@click.option("--port", default=9000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--tls-cert", type=PEM_FILE, help="Serve HTTPS with this certificate (PEM).")
@click.option("--tls-key", type=PEM_FILE, help="The certificate's private key (PEM).")
@click.option("--insecure", is_flag=True, help="Let answers leave this machine without encryption.")
@click.option("--session-store", envvar=SESSION_STORE, help="The session store that Triton's model has.")
@click.option(
    "--drain-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds that running turns have to end when the gateway is stopped.",
)
@click.option(
    "--drain-delay",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds for which a gateway that is stopped takes requests still while /health is 503.",
)
@access_options
@click.pass_context
def gateway(
    context: click.Context,
    triton: str,
    triton_tls_ca: Path | None,
    models: tuple[str, ...],
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    session_store: str | None,
    drain_timeout: float,
    drain_delay: float,
    access: Access,
) -> None:
    """Serve OpenAI's protocols in front of a Triton that runs elsewhere; several gateways may share it.

    Runs in the foreground and prints one line to stdout when Triton's models are ready. Ctrl-C or SIGTERM lets running
    answers end and stops; a second one stops at once.
    """
    if context.invoked_subcommand is not None:
        return
    events = stop_events()
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    host = resolve(host)
    if not ipaddress.ip_address(host).is_loopback and not (tls_cert or insecure):
        raise click.UsageError(f"--host {host} lets others reach it: give --tls-cert and --tls-key, or --insecure")
    require_extra("openai", "gateway", "trtstream gateway")
    from trtstream.deploy.gateway.admission import Shares
    from trtstream.deploy.gateway.app import create_app
    from trtstream.deploy.gateway.channel import OPTIONS
    from trtstream.deploy.gateway.state import Upstream
    from trtstream.deploy.gateway.triton import TritonAddress
    from trtstream.deploy.http_front.server import HttpServer

    readiness, shares = Readiness(), Shares(access.limits)
    app = create_app(
        Upstream(TritonAddress(triton, OPTIONS, triton_tls_ca), list(models), readiness, session_store), access, shares
    )
    access.open_log()
    stopping = threading.Event()
    with HttpServer(app, host, port, (tls_cert, tls_key) if tls_cert and tls_key else None, "--port") as server:
        click.echo(f"waiting for Triton at {triton}", err=True)
        ready_line = f"ready: openai={host}:{server.port} triton={triton} models={','.join(models)}"
        arguments = (triton, triton_tls_ca, models, readiness, stopping, ready_line)
        threading.Thread(target=_watch, args=arguments, name="trtstream-probe", daemon=True).start()
        events.get()
        stopping.set()
        _drain(readiness, shares, events, drain_timeout, drain_delay)


def _watch(
    triton: str,
    tls_ca: Path | None,
    models: tuple[str, ...],
    readiness: Readiness,
    stopping: threading.Event,
    ready_line: str,
) -> None:
    """Keep ``readiness`` as that of Triton's models, until the gateway is ``stopping``."""
    announced = False
    while not stopping.is_set():
        try:
            ready = all(_is_ready(triton, model, tls_ca) for model in models)
        except TrtstreamError:
            ready = False
        if not stopping.is_set():
            readiness.state = State.READY if ready else State.STARTING
        if ready and not announced:
            click.echo(ready_line)
            announced = True
        stopping.wait(PROBE_SECONDS)


def _is_ready(triton: str, model: str, tls_ca: Path | None) -> bool:
    with Client(triton, model, tls_ca, timeout=PROBE_TIMEOUT) as client:
        return client.health()["model"]


def _drain(readiness: Readiness, shares: Shares, events: Events, timeout: float, delay: float) -> None:
    """After the delay refuse new turns, and wait for the others; another signal ends that."""
    if delay:
        readiness.state = State.LEAVING
        with contextlib.suppress(queue.Empty):
            events.get(timeout=delay)
            return
    readiness.state = State.DRAINING
    deadline = time.monotonic() + timeout
    while shares.running and time.monotonic() < deadline:
        try:
            events.get(timeout=0.05)
        except queue.Empty:
            continue
        return


@gateway.group()
def keys() -> None:
    """The API keys with which clients come, each for a tenant. A running gateway takes changes at once."""


@keys.command()
@click.argument("tenant")
@KEY_FILE
def add(tenant: str, path: Path) -> None:
    """Make a key for TENANT and print it. It is shown this once: the file has its hash."""
    key, secret = add_key(path, tenant)
    click.echo(f"{key.id} for {tenant}; its secret is not kept:", err=True)
    click.echo(secret)


@keys.command("list")
@KEY_FILE
def list_keys(path: Path) -> None:
    """List the keys: id, tenant, and when it was made."""
    for key in read_keys(path):
        made = datetime.fromtimestamp(key.created, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        click.echo(f"{key.id}  {made}  {key.tenant}")


@keys.command()
@click.argument("key_id", metavar="KEY_ID")
@KEY_FILE
def revoke(key_id: str, path: Path) -> None:
    """Take a key back: requests with it are refused from now on."""
    revoke_key(path, key_id)
    click.echo(f"revoked {key_id}", err=True)
