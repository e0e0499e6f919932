"""The model that Triton runs: requests in, turns to the scheduler, outputs back on each request's own stream."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

import trtstream
from trtstream.deploy.serving import environment
from trtstream.deploy.serving.drain import follow_serve
from trtstream.deploy.serving.triton_request import parse_turn
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnOutput
from trtstream.runtime.turn import Turn

CANCEL_POLL_SECONDS = 0.05
logger = logging.getLogger("trtstream")


class TritonPythonModel:
    """One engine and its scheduler. Triton calls `initialize`, then `execute` from one thread, then `finalize`."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        engine = Path(args["model_repository"], parameters["engine_dir"]["string_value"])
        self._scheduler = trtstream.load(engine).scheduler
        self._public = os.environ.get(environment.PUBLIC) == "1"
        self._open: set[Answer] = set()
        threading.Thread(target=self._watch_cancellation, name="trtstream-cancellation", daemon=True).start()
        if environment.DRAIN_SOCKET in os.environ:
            follow_serve(os.environ[environment.DRAIN_SOCKET], self._drain)

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            answer = Answer(request.get_response_sender(), request.request_id())
            try:
                turn, answer.stream = parse_turn(
                    {tensor.name(): tensor.as_numpy() for tensor in request.inputs()},
                    parameters=request.parameters(),
                    correlation_id=request.correlation_id(),
                    flags=request.flags(),
                    timeout_us=request.timeout(),
                    request_id=request.request_id(),
                    public=self._public,
                )
                answer.turn = self._scheduler.submit(turn, answer)
                self._open.add(answer)
            except Exception as error:
                answer(error)

    def finalize(self) -> None:
        self._scheduler.close()

    def _drain(self, timeout: float) -> bool:
        drained = self._scheduler.drain(timeout)
        self._scheduler.close()
        return drained

    def _watch_cancellation(self) -> None:
        """A client may leave while its turn waits or its prompt is fed, when there is no output to notice it by."""
        while True:
            time.sleep(CANCEL_POLL_SECONDS)
            for answer in self._open.copy():
                if answer.poll():
                    self._open.discard(answer)


class Answer:
    """What goes back to one request: each output as it comes if ``stream``, else all of them as one response."""

    def __init__(self, sender: Any, request_id: str) -> None:
        self.stream = False
        self.turn: Turn | None = None
        self._sender = sender
        self._prefix = f"{request_id}: " if request_id else ""
        self._outputs: list[TurnOutput] = []
        # Triton crashes if it is asked about a request that has got its final flag.
        self._lock = threading.Lock()
        self._final = False

    def __call__(self, output: TurnOutput | Exception) -> None:
        """Take the turn's next output, or the error that ends it."""
        if isinstance(output, Exception):
            self._send(_error_response(self._prefix, output), final=True)
            return
        self._outputs.append(output)
        if self.stream or output.finish_reason:
            self._send(_response(self._outputs), final=bool(output.finish_reason))
            self._outputs.clear()

    def poll(self) -> bool:
        """Cancel the turn if the client has left; True if the request is over."""
        with self._lock:
            if not self._final and self._sender.is_cancelled():
                self.turn.cancel()
            return self._final

    def _send(self, response: Any, final: bool) -> None:
        with self._lock:
            self._final = final
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)


def _response(outputs: list[TurnOutput]) -> Any:
    last = outputs[-1]
    return pb_utils.InferenceResponse(
        [
            _string("text_output", "".join(output.text for output in outputs)),
            _tensor("output_ids", [token for output in outputs for token in output.token_ids], np.int32),
            _tensor("output_log_probs", [value for output in outputs for value in output.log_probs], np.float32),
            _string("finish_reason", last.finish_reason),
            _tensor("num_input_tokens", [last.num_input_tokens], np.int32),
            _tensor("num_output_tokens", [last.num_output_tokens], np.int32),
            _tensor("session_tokens", [last.session_tokens], np.int32),
        ]
    )


def _error_response(prefix: str, error: Exception) -> Any:
    if not isinstance(error, TrtstreamError):
        logger.error("a request failed", exc_info=error)
        error = TrtstreamError(f"the model failed: {type(error).__name__}: {error}")
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(prefix + str(error)))


def _tensor(name: str, values: list[Any], dtype: type) -> Any:
    return pb_utils.Tensor(name, np.array(values, dtype=dtype))


def _string(name: str, text: str) -> Any:
    return pb_utils.Tensor(name, np.array([text.encode()], dtype=np.object_))
