"""``trtstream serve``: the command's options, and the Triton command line that follows from them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from trtstream import failpoint
from trtstream.deploy.gateway.access import Access, access_options
from trtstream.deploy.http_front.readiness import Readiness
from trtstream.deploy.serving.addresses import LOOPBACK, Addresses, choose_ports, resolve
from trtstream.deploy.serving.environment import SERVICE_LIMITS, SESSION_STORE, ModelOptions
from trtstream.deploy.serving.package import DEFAULT_MODEL_NAME, model_names, write_model
from trtstream.deploy.serving.supervisor import Policy, Service, Supervisor, stop_events
from trtstream.deploy.serving.tritonserver import find_tritonserver
from trtstream.deploy.serving.workplace import PLAIN_PATH, require_shared_memory, workplace
from trtstream.deploy.tensorrt_llm.launch import MODEL, find_built_engine, require_backend
from trtstream.engine_dir import CONFIG, check_runnable, read_engine
from trtstream.errors import TrtstreamError
from trtstream.extras import require_extra
from trtstream.runtime.scheduler_limits import RECALLED

CLOSED_APIS = "model-repository,shared-memory,trace,logging"
# A header that a request must have for these APIs, with a line break in its value, so that no request can.
CLOSED = f"{CLOSED_APIS}:closed-by-trtstream=no\nrequest"
PORT = click.IntRange(0, 65535)
SECONDS = click.FloatRange(min=0)
PEM_FILE = click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True)


@click.command()
@click.argument("source", metavar="ENGINE|MODEL_REPO", type=click.Path(path_type=Path))
@click.option("--host", default=LOOPBACK, show_default=True, help="Address to listen on.")
@click.option("--grpc-port", default=8001, show_default=True, type=PORT, help="Port for gRPC; 0 takes a free one.")
@click.option("--http-port", default=8000, show_default=True, type=PORT, help="Port for HTTP; 0 takes a free one.")
@click.option(
    "--metrics-port", default=8002, show_default=True, type=PORT, help="Port for metrics; 0 takes a free one."
)
@click.option("--openai-port", type=PORT, help="Serve OpenAI's protocols on this port too; 0 takes a free one.")
@click.option("--tls-cert", type=PEM_FILE, help="Serve gRPC and HTTP over TLS with this certificate (PEM).")
@click.option("--tls-key", type=PEM_FILE, help="The certificate's private key (PEM).")
@click.option("--insecure", is_flag=True, help="Let all services leave this machine without encryption.")
@click.option(
    "--drain-timeout",
    default=Policy.drain_timeout,
    show_default=True,
    type=SECONDS,
    help="Seconds that running turns have to end when the server is stopped.",
)
@click.option(
    "--drain-delay",
    default=Policy.drain_delay,
    show_default=True,
    type=SECONDS,
    help="Seconds for which a server that is stopped takes turns still while /ready is 503, so that proxies leave it.",
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
@click.option(
    "--session-store",
    envvar=SESSION_STORE,
    help="Keep sessions in this database, so that they outlive the server: sqlite:///PATH or "
    f"postgresql+psycopg://USER@HOST/DATABASE. {SESSION_STORE} says the same, out of the sight of other users.",
)
@click.option(
    "--commit-timeout",
    default=SERVICE_LIMITS.commit_timeout,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that the session store has to take a turn.",
)
@click.option(
    "--session-ttl",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds after which a session that is not continued is deleted from the store.  [default: never]",
)
@click.option(
    "--max-sessions",
    default=SERVICE_LIMITS.max_sessions,
    show_default=True,
    type=click.IntRange(min=1),
    help="Sessions in memory. The least recently used leave it: they end, or a session store still has them.",
)
@click.option(
    "--snapshot-dir",
    type=click.Path(file_okay=False, path_type=Path, resolve_path=True),
    help="Keep caches of sessions that leave memory in files in this folder, so that they need not be computed again.",
)
@click.option(
    "--snapshot-bytes",
    default=SERVICE_LIMITS.snapshot_bytes,
    show_default=True,
    type=click.IntRange(min=1),
    help="Bytes that these files may take; the least recently used leave.",
)
@click.option(
    "--recall",
    default=SERVICE_LIMITS.recall,
    show_default=True,
    type=click.IntRange(min=0),
    help="Tokens of what has left the window that a turn may read again, unless it says otherwise; 0 is none.",
)
@click.option(
    "--recall-template",
    default=SERVICE_LIMITS.recall_template,
    help=f"The words around them, with {RECALLED} in their place.  [default: {SERVICE_LIMITS.recall_template!r}]",
)
@click.option(
    "--restart",
    default="on-failure",
    show_default=True,
    type=click.Choice(["on-failure", "never"]),
    help="Start Triton again when it or a model's process dies or hangs, or exit 1.",
)
@click.option(
    "--max-restarts",
    default=Policy.max_restarts,
    show_default=True,
    type=click.IntRange(min=0),
    help="Restarts within 10 minutes after which to exit 1.",
)
@click.option(
    "--start-timeout",
    default=Policy.start_timeout,
    show_default=True,
    type=SECONDS,
    help="Seconds that Triton and its models have to get ready; 0 is no limit.",
)
@click.option(
    "--hang-timeout",
    default=Policy.hang_timeout,
    show_default=True,
    type=SECONDS,
    help="Seconds that one step of the engine may take before the model counts as hung; 0 is no limit.",
)
@access_options
def serve(
    source: Path,
    host: str,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    openai_port: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    drain_timeout: float,
    drain_delay: float,
    max_tokens_limit: int,
    turn_timeout: float,
    max_itl_ms: float,
    session_store: str | None,
    commit_timeout: float,
    session_ttl: float | None,
    max_sessions: int,
    snapshot_dir: Path | None,
    snapshot_bytes: int,
    recall: int,
    recall_template: str,
    restart: str,
    max_restarts: int,
    start_timeout: float,
    hang_timeout: float,
    access: Access,
) -> None:
    """Serve an engine, or a model repository that `trtstream package` wrote, on Triton Inference Server.

    Runs in the foreground and prints one line to stdout when the server is ready. Ctrl-C or SIGTERM lets running turns
    end and stops; a second one stops at once. When Triton or a model dies or hangs after that line, Triton is started
    again.

    On another --host than this machine's own, --tls-cert and --tls-key (for gRPC and HTTP; metrics stay on 127.0.0.1)
    or --insecure are needed, and session ids must have 16 characters or more.
    """
    events = stop_events()
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if snapshot_dir is not None and session_store is None:
        raise click.UsageError("--snapshot-dir needs --session-store: without one, sessions end with the server")
    if recall and session_store is None:
        raise click.UsageError("--recall needs --session-store, which has the earlier turns")
    host = resolve(host)
    public = not ipaddress.ip_address(host).is_loopback
    if public and not (tls_cert or insecure):
        raise click.UsageError(
            f"--host {host} lets others reach the server: give --tls-cert and --tls-key, or --insecure if that is meant"
        )
    metrics_host = host if insecure or not public else LOOPBACK
    addresses = choose_ports(host, metrics_host, grpc_port, http_port, metrics_port, openai_port)

    with workplace() as place:
        installation = find_tritonserver(place.folder)
        repository = _repository(source, place.folder)
        models = model_names(repository)
        options: dict[str, Any] = {}
        if engine := find_built_engine(repository):
            require_backend(installation.binary, installation.environment["PATH"], engine)
            if session_store is not None or openai_port is not None:
                raise TrtstreamError(
                    f"{source} has a tensorrt-llm engine, which keeps no sessions: leave --session-store and "
                    "--openai-port out"
                )
            # Its models know no control socket: Triton itself waits for requests in flight.
            options = {
                "folder": repository,
                "exit_seconds": drain_timeout,
                "ranks": engine.world_size,
                "ranked_model": MODEL,
            }
        require_shared_memory(len(models))
        limits = replace(
            SERVICE_LIMITS,
            max_tokens_limit=max_tokens_limit,
            turn_timeout=turn_timeout,
            max_itl_ms=max_itl_ms,
            commit_timeout=commit_timeout,
            session_ttl=session_ttl,
            max_sessions=max_sessions,
            snapshot_bytes=snapshot_bytes,
            recall=recall,
            recall_template=recall_template,
        )
        store = None if session_store is None else _session_store(session_store)
        service = Service(
            installation,
            _arguments(source, repository, addresses, tls_cert, tls_key),
            ModelOptions(public, limits, store, None if snapshot_dir is None else str(snapshot_dir)).variables(),
            place,
            f"{addresses.triton_http}/v2/health/ready",
            options,
        )
        policy = Policy(restart == "on-failure", max_restarts, start_timeout, hang_timeout, drain_timeout, drain_delay)
        if failpoint.VARIABLE in os.environ:
            click.echo(f"{failpoint.VARIABLE} is set, which is for tests: the model will be killed", err=True)
        if failpoint.STEP_VARIABLE in os.environ:
            click.echo(f"{failpoint.STEP_VARIABLE} is set, which is for benchmarks: every step waits", err=True)
        click.echo(f"starting Triton with {source}", err=True)
        on_ready = partial(click.echo, _ready_line(addresses, models))
        readiness = Readiness()
        supervisor = Supervisor(service, policy, events, readiness, on_ready)
        tls = (tls_cert, tls_key) if tls_cert and tls_key else None
        with ExitStack() as servers:
            servers.enter_context(_front(addresses, readiness, supervisor.cancel, tls))
            if addresses.openai_port is not None:
                servers.enter_context(_gateway(addresses, addresses.openai_port, models, readiness, tls, store, access))
            supervisor.run()


def _front(
    addresses: Addresses, readiness: Readiness, cancel: Callable[[str], None], tls: tuple[Path, Path] | None
) -> AbstractContextManager[object]:
    """The HTTP service."""
    for module in ("uvicorn", "starlette", "httpx2"):
        require_extra(module, "server", "serving HTTP")
    from trtstream.deploy.http_front.app import Upstream, create_app  # here, as it needs the extra
    from trtstream.deploy.http_front.server import HttpServer

    triton = Upstream(addresses.triton_http, readiness, cancel)
    return HttpServer(create_app(triton), addresses.host, addresses.http_port, tls)


def _gateway(
    addresses: Addresses,
    port: int,
    models: list[str],
    readiness: Readiness,
    tls: tuple[Path, Path] | None,
    session_store: str | None,
    access: Access,
) -> AbstractContextManager[object]:
    """The service for OpenAI's protocols."""
    require_extra("openai", "gateway", "--openai-port")
    from trtstream.deploy.gateway.admission import Shares
    from trtstream.deploy.gateway.app import create_app
    from trtstream.deploy.gateway.channel import own_triton
    from trtstream.deploy.gateway.state import Upstream
    from trtstream.deploy.http_front.server import HttpServer

    triton = Upstream(own_triton(addresses.host, addresses.grpc_port, tls), models, readiness, session_store)
    access.open_log()
    app = create_app(triton, access, Shares(access.limits))
    return HttpServer(app, addresses.host, port, tls, "--openai-port")


def _session_store(text: str) -> str:
    """The store's URL for the models, which start elsewhere. Raises TrtstreamError if it does not open."""
    from trtstream.sessions.database import session_store_url  # here, as most servers have none
    from trtstream.sessions.turn_log import TurnLog

    url = session_store_url(text)
    TurnLog(url).close()
    return url


def _repository(source: Path, work: Path) -> Path:
    """``source`` if it is a model repository; for an engine, a repository in ``work`` that points to it."""
    repository = work / "model_repository"
    if not source.is_dir():
        raise TrtstreamError(f"{source} is not a folder; give an engine or a model repository")
    if not (source / CONFIG).exists():
        if not model_names(source):
            raise TrtstreamError(f"{source} is neither an engine nor a model repository; see `trtstream package`")
        return _plain_path(source.resolve(), repository)
    config = read_engine(source)
    check_runnable(source, config)  # before Triton starts and finds out
    write_model(repository / DEFAULT_MODEL_NAME, DEFAULT_MODEL_NAME, config, "1/engine")
    # Not its path in the model's config, which clients can read.
    (repository / DEFAULT_MODEL_NAME / "1" / "engine").symlink_to(source.resolve())
    return repository


def _plain_path(repository: Path, link: Path) -> Path:
    """``repository``, or where the Python backend could not take its path, a ``link`` to it."""
    for model in model_names(repository):
        if not PLAIN_PATH.fullmatch(model):
            raise TrtstreamError(
                f"the model {model!r} in {repository} has a character that Triton's Python backend cannot take "
                "(a space, or one outside of ASCII); rename its folder, and the name in its config.pbtxt"
            )
    if PLAIN_PATH.fullmatch(str(repository)):
        return repository
    link.symlink_to(repository)
    return link


def _arguments(
    source: Path, repository: Path, addresses: Addresses, tls_cert: Path | None, tls_key: Path | None
) -> list[str]:
    gpu = Path("/dev/nvidiactl").exists()
    arguments = [
        f"--model-repository={repository}",
        "--model-control-mode=none",
        f"--http-restricted-api={CLOSED}",
        f"--grpc-restricted-protocol={CLOSED}",
        f"--grpc-address={addresses.host}",
        f"--grpc-port={addresses.grpc_port}",
        f"--http-address={LOOPBACK}",
        f"--http-port={addresses.triton_http_port}",
        f"--metrics-address={addresses.metrics_host}",
        f"--metrics-port={addresses.metrics_port}",
        f"--allow-gpu-metrics={str(gpu).lower()}",
        "--pinned-memory-pool-byte-size=0",  # the model's tensors are on the CPU and small
        "--grpc-http2-max-ping-strikes=0",  # proxies ask often whether it still answers
        "--log-info=false",
    ]
    if (source / CONFIG).exists():  # our model alone, and its configuration is complete
        arguments.append("--disable-auto-complete-config")
    if tls_cert:
        arguments += ["--grpc-use-ssl=true", f"--grpc-server-cert={tls_cert}", f"--grpc-server-key={tls_key}"]
    return arguments


def _ready_line(addresses: Addresses, models: list[str]) -> str:
    openai = "" if addresses.openai_port is None else f"openai={addresses.host}:{addresses.openai_port} "
    return (
        f"ready: grpc={addresses.host}:{addresses.grpc_port} http={addresses.host}:{addresses.http_port} "
        f"metrics={addresses.metrics_host}:{addresses.metrics_port} {openai}models={','.join(models)}"
    )
