"""The model that Triton runs: requests in, turns to the scheduler, outputs back on each request's own stream.

Triton reads this file twice: a first process is only asked whether it completes the model's configuration. So torch is
imported in `initialize` and not here, which takes a third off the time that a server needs to start.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

import trtstream
from trtstream import failpoint
from trtstream.deploy.contract import REQUEST_NAME
from trtstream.deploy.serving.control import ControlLine
from trtstream.deploy.serving.environment import CONTROL_SOCKET, RESTARTS, ModelOptions
from trtstream.deploy.serving.orphan import exit_with_parent
from trtstream.deploy.serving.triton_metrics import TritonMetrics
from trtstream.deploy.serving.triton_request import Delivery, parse_turn
from trtstream.deploy.serving.triton_response import error_message, response_tensors
from trtstream.errors import TrtstreamError
from trtstream.runtime.metrics import code_of
from trtstream.runtime.requests import TurnOutput, TurnRequest

if TYPE_CHECKING:
    from trtstream.runtime.turn import Turn

CANCEL_POLL_SECONDS = 0.05
SNAPSHOT_SECONDS = 2.0  # at least, for those that are written at the end of a drain
MAX_LEFT = 1024  # names of requests whose clients have left, kept for those that are still to be read


class TritonPythonModel:
    """One engine and its scheduler. Triton calls `initialize`, then `execute` from one thread, then `finalize`."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        engine = Path(args["model_repository"], parameters["engine_dir"]["string_value"])
        if str(engine.resolve()).isascii():  # the backend's Python takes no other paths
            engine = engine.resolve()
        options = ModelOptions.read()
        self._public = options.public
        self._executing = threading.Lock()
        self._execute_started: float | None = None
        exit_with_parent()
        logging.basicConfig(format="%(message)s")
        logging.getLogger("trtstream").setLevel(logging.INFO)
        self._metrics = TritonMetrics(pb_utils.MetricFamily, args["model_name"])
        self._metrics("restarts_total", float(os.environ.get(RESTARTS, "0")))
        llm = trtstream.load(engine, options.limits, options.session_store, options.snapshot_dir, measure=self._metrics)
        self._scheduler = llm.scheduler
        self._metrics.start(self._scheduler.gauges)
        self._open: dict[Answer, Turn] = {}
        self._left: deque[str] = deque(maxlen=MAX_LEFT)
        threading.Thread(target=self._watch_cancellation, name="trtstream-cancellation", daemon=True).start()
        if CONTROL_SOCKET in os.environ:
            ControlLine(os.environ[CONTROL_SOCKET], self._busy_seconds, self._drain, self._cancel)

    def execute(self, requests: list[Any]) -> None:
        with self._executing:
            self._execute_started = time.monotonic()
            try:
                self._submit(requests)
            finally:
                self._execute_started = None

    def _submit(self, requests: list[Any]) -> None:
        for request in requests:
            answer = Answer(request.get_response_sender())
            try:
                turn_request = self._parse(request, answer)
            except Exception as error:
                self._metrics("refusals_total", label=code_of(error))
                answer(error)
                continue
            try:
                self._open[answer] = turn = self._scheduler.submit(turn_request, answer)
                if answer.name in self._left:
                    turn.cancel()
            except Exception as error:
                answer(error)

    def _parse(self, request: Any, answer: Answer) -> TurnRequest:
        """The turn that a request asks for. Raises TrtstreamError for one that cannot be read."""
        try:
            answer.request_id = request.request_id()
            parameters = json.loads(request.parameters() or "{}")
        except UnicodeDecodeError:  # Triton passes on an id and parameters as HTTP brought them
            raise TrtstreamError("the request's id or a parameter is not UTF-8; encode it as UTF-8") from None
        answer.name = parameters.get(REQUEST_NAME)
        turn, answer.delivery = parse_turn(
            {tensor.name(): tensor.as_numpy() for tensor in request.inputs()},
            parameters=parameters,
            correlation_id=request.correlation_id(),
            flags=request.flags(),
            timeout_us=request.timeout(),
            request_id=answer.request_id,
            public=self._public,
        )
        return turn

    def finalize(self) -> None:
        self._scheduler.close()

    def _busy_seconds(self) -> float:
        """How long the current step or call of `execute` has lasted, whichever is longer."""
        started = self._execute_started
        return max(self._scheduler.step_seconds(), 0.0 if started is None else time.monotonic() - started)

    def _cancel(self, name: str) -> None:
        """The client of a request has left, perhaps before the request was read."""
        self._left.append(name)
        for answer, turn in self._open.copy().items():
            if answer.name == name:
                turn.cancel()

    def _drain(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        if self._executing.acquire(timeout=timeout):  # a turn that is being read has been accepted
            self._executing.release()
        drained = self._scheduler.drain(max(deadline - time.monotonic(), 0.0))
        failpoint.reach("drain")
        self._scheduler.close(max(deadline - time.monotonic(), SNAPSHOT_SECONDS))
        return drained

    def _watch_cancellation(self) -> None:
        """A client may leave while its turn waits or its prompt is fed, when there is no output to notice it by."""
        while True:
            time.sleep(CANCEL_POLL_SECONDS)
            for answer, turn in self._open.copy().items():
                if answer.is_over(turn):
                    del self._open[answer]


class Answer:
    """The responses to one request, as its ``delivery`` says."""

    def __init__(self, sender: Any) -> None:
        self.request_id = ""
        self.delivery = Delivery()
        self.name: str | None = None  # the HTTP front's
        self._sender = sender
        self._outputs: list[TurnOutput] = []
        # Triton crashes if it is asked about a request that has got its final flag.
        self._lock = threading.Lock()
        self._final = False

    def __call__(self, output: TurnOutput | Exception) -> None:
        """Take the turn's next output, or the error that ends it."""
        if isinstance(output, Exception):
            error = pb_utils.TritonError(error_message(self.request_id, output))
            self._send(pb_utils.InferenceResponse(error=error), final=True)
            return
        self._outputs.append(output)
        if self.delivery.stream or output.finish_reason:
            tensors = response_tensors(self._outputs, self.delivery.counts_apart)
            response = pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])
            self._send(response, final=bool(output.finish_reason))
            self._outputs.clear()

    def is_over(self, turn: Turn) -> bool:
        """Whether the request has ended. If its client has left, cancel its turn."""
        with self._lock:
            if not self._final and self._sender.is_cancelled():
                turn.cancel()
            return self._final

    def _send(self, response: Any, final: bool) -> None:
        with self._lock:
            self._final = final
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)
