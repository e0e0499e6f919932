"""Keeps a Triton running: starts it, sees that it or a model died or hangs, starts it again, and drains it to stop."""

from __future__ import annotations

import contextlib
import http.client
import queue
import signal
import time
import urllib.request
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import click

from trtstream.deploy.http_front.readiness import Readiness, State
from trtstream.deploy.serving import environment
from trtstream.deploy.serving.control import ControlSocket
from trtstream.deploy.serving.triton_process import TritonProcess
from trtstream.deploy.serving.tritonserver import Installation
from trtstream.deploy.serving.workplace import Workplace
from trtstream.errors import TrtstreamError

RESTART_WINDOW = 600.0  # seconds in which restarts are counted against the limit
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds before a restart; each doubles the last one's
STABLE_SECONDS = 10.0  # of service, after which the delay is the first again
READY_POLL_SECONDS = 0.1
CHILD_POLL_SECONDS = 1.0
REASON_SECONDS = 5.0  # for Triton to say why a model could not be loaded, once its process has died

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Event:
    """What ends a running service: a signal (``reason`` is its name) or a failure (a clause)."""

    kind: Literal["signal", "exit", "death", "hang"]
    reason: str = ""


Events = queue.SimpleQueue[Event]  # whose put() may be called in a signal handler


def stop_events() -> Events:
    """A queue that from now on gets the signals that stop this process."""
    events: Events = queue.SimpleQueue()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: events.put(Event("signal", signal.Signals(number).name)))
    return events


@dataclass(frozen=True)
class Service:
    """One Triton: what runs, with which command line, and where to ask for its health.

    ``options`` are those of `TritonProcess`.
    """

    installation: Installation
    arguments: list[str]
    variables: dict[str, str]
    place: Workplace
    health_url: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """When to start Triton again, and when to lose patience. Times are in seconds; a timeout of 0 is none."""

    restart: bool = True
    max_restarts: int = 5
    start_timeout: float = 1800.0
    hang_timeout: float = 120.0
    drain_timeout: float = 30.0
    drain_delay: float = 0.0


class Supervisor:
    """Runs a service until ``events`` has a signal. ``on_ready`` is called when it is ready for the first time."""

    def __init__(
        self, service: Service, policy: Policy, events: Events, readiness: Readiness, on_ready: Callable[[], None]
    ) -> None:
        self._service, self._policy = service, policy
        self._events, self._readiness, self._on_ready = events, readiness, on_ready
        self._restarts: deque[float] = deque()  # when each of the last ones was
        self._all_restarts = 0
        self._ready_at: float | None = None
        self._was_ready = False
        self._delay = FIRST_DELAY
        self._models: ControlSocket | None = None

    def cancel(self, name: str) -> None:
        """From any thread: end the turn of the request ``name``, whose client has left."""
        models = self._models
        if models is not None:
            models.cancel(name)

    def run(self) -> None:
        """Serve. Raises TrtstreamError if the service failed and is not to be started again, or could not drain."""
        try:
            while (reason := self._run_triton()) and self._prepare_restart(reason):
                pass
        except TrtstreamError:
            self._readiness.state = State.FAILED
            raise

    def _run_triton(self) -> str:
        """Run Triton once; returns why it failed, or nothing if it was stopped."""
        service = self._service
        self._ready_at = None
        with ControlSocket(
            service.place.folder,
            self._policy.hang_timeout,
            on_death=lambda: self._events.put(Event("death", "a model's process died")),
            on_hang=lambda seconds: self._events.put(Event("hang", f"a model has done nothing for {seconds:.0f} s")),
        ) as models:
            self._models = models
            variables = {
                **service.variables,
                environment.CONTROL_SOCKET: str(models.path),
                environment.RESTARTS: str(self._all_restarts),
            }
            with TritonProcess(
                service.installation,
                service.arguments,
                variables,
                service.place,
                on_exit=lambda: self._events.put(Event("exit")),
                **service.options,
            ) as triton:
                event = self._start(triton)
                if event is None:
                    models.watch_hangs()
                    self._report_ready(triton)
                    event = self._next_event(triton)
                if event.kind == "signal":
                    self._stop(triton, models, event)
                    return ""
                self._readiness.state = State.HUNG if event.kind == "hang" else State.FAILED
                reason = triton.death() if event.kind == "exit" else event.reason
        self._forget_failures()
        return reason

    def _start(self, triton: TritonProcess) -> Event | None:
        """Wait for Triton and all its models to be ready; returns what came first, if anything did."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
        limit = self._policy.start_timeout
        deadline = time.monotonic() + limit if limit else float("inf")
        dead_since = None
        lost_line = False
        while True:
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=READY_POLL_SECONDS)
                if event.kind != "death":
                    return event
                lost_line = True
            if not (lost_line or triton.dead_child()):
                dead_since = None  # Triton has noticed: it asks each model in a process that ends
            elif dead_since is None:
                dead_since = time.monotonic()
            if dead_since is not None and time.monotonic() - dead_since > REASON_SECONDS:
                triton.print_tail()
                return Event("death", "a model's process died while it was loading; the log's last lines are above")
            if time.monotonic() > deadline:
                triton.print_tail()
                return Event("hang", f"Triton was not ready within --start-timeout {limit:g} s; give it more time")
            with (
                contextlib.suppress(OSError, http.client.HTTPException),
                opener.open(self._service.health_url, timeout=1),
            ):
                return None

    def _report_ready(self, triton: TritonProcess) -> None:
        self._ready_at = time.monotonic()
        self._readiness.state = State.READY
        triton.show_log()
        self._service.place.protect_shared_memory()
        if self._was_ready:
            click.echo("ready again", err=True)
        else:
            self._was_ready = True
            self._on_ready()

    def _next_event(self, triton: TritonProcess) -> Event:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._events.get(timeout=CHILD_POLL_SECONDS)
            if triton.dead_child():
                return Event("death", "a model's process died")

    def _prepare_restart(self, reason: str) -> bool:
        """Wait until it is time to start Triton again; False if a signal came first. Raises if that must not be."""
        now, policy = time.monotonic(), self._policy
        if not (self._was_ready and policy.restart):
            raise TrtstreamError(reason)
        while self._restarts and now - self._restarts[0] > RESTART_WINDOW:
            self._restarts.popleft()
        if len(self._restarts) >= policy.max_restarts:
            raise TrtstreamError(
                f"{reason}; Triton was started again {len(self._restarts)} times in {RESTART_WINDOW / 60:g} minutes, "
                "which is the limit (--max-restarts)"
            )
        if self._ready_at is not None and now - self._ready_at > STABLE_SECONDS:
            self._delay = FIRST_DELAY
        self._restarts.append(now)
        self._all_restarts += 1
        self._readiness.state = State.RESTARTING
        click.echo(
            f"{reason}; starting Triton again in {self._delay:g} s "
            f"(restart {len(self._restarts)} of at most {policy.max_restarts} in {RESTART_WINDOW / 60:g} minutes)",
            err=True,
        )
        with contextlib.suppress(queue.Empty):
            self._events.get(timeout=self._delay)  # after a failure's are forgotten, only signals come
            click.echo("stopped", err=True)
            return False
        self._delay = min(2 * self._delay, LONGEST_DELAY)
        return True

    def _forget_failures(self) -> None:
        """Keep only signals: the failures are those of a Triton that is gone."""
        signals = []
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get_nowait()
                if event.kind == "signal":
                    signals.append(event)
        for event in signals:
            self._events.put(event)

    def _stop(self, triton: TritonProcess, models: ControlSocket, event: Event) -> None:
        def kill_now(number: int, frame: object) -> None:
            raise click.Abort

        for number in STOP_SIGNALS:
            signal.signal(number, kill_now)
        timeout, delay = self._policy.drain_timeout, self._policy.drain_delay
        drained = True
        if self._ready_at is not None and delay:  # else there are no turns, or nobody is to notice
            self._readiness.state = State.LEAVING
            click.echo(f"{event.reason}: no longer ready, and taking turns for {delay:g} s more", err=True)
            with contextlib.suppress(queue.Empty):
                self._events.get(timeout=delay)  # a failure: there is nothing to wait for
        self._readiness.state = State.DRAINING
        if self._ready_at is not None:
            click.echo(f"{event.reason}: draining; once more to stop at once", err=True)
            drained = models.drain(timeout)
            triton.stop()
        if not drained:
            raise TrtstreamError(f"turns were still running after --drain-timeout {timeout:g} s and were cut short")
        click.echo("stopped", err=True)
