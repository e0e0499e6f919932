"""A client of one trtstream model on Triton, over gRPC streams: what smoke, bench and chat share."""

from __future__ import annotations

import contextlib
import queue
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from trtstream.errors import TrtstreamError

DEFAULT_URL = "127.0.0.1:8001"
DEFAULT_MODEL = "trtstream"

INPUTS = {
    "text_input": "BYTES",
    "input_ids": "INT32",
    "max_tokens": "INT32",
    "stream": "BOOL",
    "chat": "BOOL",
    "system": "BYTES",
    "session_id": "BYTES",
    "session_end": "BOOL",
    "session_tokens": "INT32",
    "temperature": "FP32",
    "top_p": "FP32",
    "repetition_penalty": "FP32",
    "top_k": "INT32",
    "random_seed": "UINT64",
    "stop_words": "BYTES",
    "end_id": "INT32",
    "ignore_eos": "BOOL",
    "return_log_probs": "BOOL",
}
"""The model's input tensors and their Triton datatypes; all are optional and of rank 1."""

OUTPUTS = {
    "text_output": "BYTES",
    "output_ids": "INT32",
    "output_log_probs": "FP32",
    "finish_reason": "BYTES",
    "num_input_tokens": "INT32",
    "num_output_tokens": "INT32",
    "session_tokens": "INT32",
}
"""The model's output tensors and their Triton datatypes."""


class ModelMissingError(TrtstreamError):
    """The server has no model of that name."""


@dataclass(frozen=True)
class Response:
    """One response of a turn: ``text`` and ``token_ids`` are what is new in it.

    ``finish_reason`` is empty until the turn's last response, then ``stop``, ``length`` or ``cancelled``.
    ``received_at`` is when it arrived, in seconds of `time.perf_counter`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    num_input_tokens: int
    num_output_tokens: int
    session_tokens: int
    received_at: float


@dataclass(frozen=True)
class ServedModel:
    """What Triton says of a model: its tensors' datatypes by name, and the parameters of its config.pbtxt."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    decoupled: bool
    parameters: dict[str, str]

    def parameter(self, name: str) -> int:
        """An integer parameter. Raises TrtstreamError where the config has none of that name."""
        try:
            return int(self.parameters[name])
        except (KeyError, ValueError):
            raise TrtstreamError(
                f"the model's config.pbtxt has no integer parameter {name!r}; repackage its engine with this version"
            ) from None


class Client:
    """A connection to the Triton server at ``url`` (``host:port`` of its gRPC service).

    One turn at a time: a client belongs to one thread. With ``tls_ca``, a PEM file of the certificates to trust, the
    connection is encrypted. ``timeout`` is how long the server may stay silent, in seconds. Whatever goes wrong between
    here and the model is raised as TrtstreamError.
    """

    keeps_sessions = True
    """Whether the server remembers a session between turns."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        model_name: str = DEFAULT_MODEL,
        tls_ca: Path | None = None,
        *,
        timeout: float = 120.0,
    ) -> None:
        from tritonclient.grpc import InferenceServerClient

        if "://" in url:
            raise TrtstreamError(f"--url is {url!r}; give the gRPC service as host:port, for example {DEFAULT_URL}")
        self.url = url
        self.model_name = model_name
        self.timeout = timeout
        tls = {} if tls_ca is None else {"ssl": True, "root_certificates": str(tls_ca)}
        self._triton = InferenceServerClient(url, **tls)
        self._arrivals: queue.SimpleQueue[tuple[float, Any, Any] | None] = queue.SimpleQueue()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._triton.stop_stream(cancel_requests=True)
        self._triton.close()

    def health(self) -> dict[str, bool]:
        """Triton's own word: is the server ``live`` and ``ready``, is the ``model`` ready."""
        return {
            "live": self._call("is_server_live"),
            "ready": self._call("is_server_ready"),
            "model": self._call("is_model_ready", self.model_name),
        }

    def model(self) -> ServedModel:
        """Ask Triton for the model's metadata and configuration."""
        metadata = self._call("get_model_metadata", self.model_name)
        config = self._call("get_model_config", self.model_name).config
        return ServedModel(
            inputs={tensor.name: tensor.datatype for tensor in metadata.inputs},
            outputs={tensor.name: tensor.datatype for tensor in metadata.outputs},
            decoupled=config.model_transaction_policy.decoupled,
            parameters={name: value.string_value for name, value in config.parameters.items()},
        )

    def generate(self, **inputs: Any) -> Iterator[Response]:
        """Send one request and yield its responses as they arrive.

        ``inputs`` are the tensors of `INPUTS` by name, as Python values; None leaves one out. Closing the iterator
        before its end cancels the request on the server.
        """
        tensors = [make_tensor(name, value, INPUTS[name]) for name, value in inputs.items() if value is not None]
        with contextlib.closing(self._stream(self.model_name, tensors)) as results:
            for received_at, result in results:
                yield self._response(result, received_at)

    def _stream(self, model_name: str, tensors: Sequence[Any], request_id: str = "") -> Iterator[tuple[float, Any]]:
        """Send one request to a decoupled model; yield (when it arrived, tritonclient's result) of each response."""
        from tritonclient.utils import InferenceServerException

        self._arrivals = arrivals = queue.SimpleQueue()
        answered = whole = False
        self._triton.start_stream(lambda result, error: arrivals.put((time.perf_counter(), result, error)))
        try:
            # A stream that is dead already refuses the request; why it died is in the queue.
            with contextlib.suppress(InferenceServerException):
                self._triton.async_stream_infer(
                    model_name, list(tensors), request_id=request_id, enable_empty_final_response=True
                )
            while not whole:
                try:
                    arrival = arrivals.get(timeout=self.timeout)
                except queue.Empty:
                    raise TrtstreamError(
                        f"the server at {self.url} sent nothing for {self.timeout:g} s; is it overloaded or stopped?"
                    ) from None
                if arrival is None:
                    raise TrtstreamError("the request was cancelled")
                received_at, result, error = arrival
                if error is not None:
                    raise self._error(error, answered)
                message = result.get_response()
                whole = message.parameters["triton_final_response"].bool_param
                if message.outputs:
                    answered = True
                    yield received_at, result
            if not answered:
                raise TrtstreamError(f"the model {model_name!r} at {self.url} ended a request without an answer")
        finally:
            self._triton.stop_stream(cancel_requests=not whole)

    def cancel(self) -> None:
        """From any thread: cancel the request that is under way; whoever waits for it gets a TrtstreamError."""
        self._arrivals.put(None)

    def answer(self, **inputs: Any) -> Response:
        """Send one request and wait for its end: all its text and tokens as one response."""
        return join(list(self.generate(**inputs)))

    def _call(self, method: str, *arguments: str) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return getattr(self._triton, method)(*arguments, client_timeout=self.timeout)
        except InferenceServerException as error:
            raise self._error(error) from None

    def _response(self, result: Any, received_at: float) -> Response:
        values = {name: result.as_numpy(name) for name in OUTPUTS}
        missing = [name for name in values if values[name] is None and name != "output_log_probs"]
        if missing:
            raise TrtstreamError(
                f"the model {self.model_name!r} at {self.url} answers without {missing[0]!r}: "
                "it was not packaged by trtstream; see --model-name"
            )
        return Response(
            text=values["text_output"][0].decode("utf-8", "replace"),
            token_ids=tuple(values["output_ids"].tolist()),
            finish_reason=values["finish_reason"][0].decode(),
            num_input_tokens=int(values["num_input_tokens"][0]),
            num_output_tokens=int(values["num_output_tokens"][0]),
            session_tokens=int(values["session_tokens"][0]),
            received_at=received_at,
        )

    def _error(self, error: Any, answered: bool = False) -> TrtstreamError:
        """One line for what tritonclient reports: a gRPC status, or the model's own message where there is none."""
        status = (error.status() or "").removeprefix("StatusCode.")
        message = " ".join(str(error.message()).split())
        if status == "UNAVAILABLE" and answered:
            return TrtstreamError(f"the server at {self.url} went away in the middle of an answer ({message})")
        if status == "UNAVAILABLE":
            return TrtstreamError(
                f"no Triton gRPC service answers at {self.url}: "
                f"start one with `trtstream serve` or give --url ({message})"
            )
        if status == "DEADLINE_EXCEEDED":
            return TrtstreamError(f"the server at {self.url} did not answer within {self.timeout:g} s")
        if "unknown model" in message:
            return ModelMissingError(f"the server at {self.url} has no model {self.model_name!r}; see --model-name")
        return TrtstreamError(message)


def service_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every client command: ``url``, ``model_name`` and ``tls_ca``, as `Client` takes them."""
    for option in (
        click.option(
            "--tls-ca",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Connect over TLS, trusting the certificates in this PEM file.",
        ),
        click.option("--model-name", default=DEFAULT_MODEL, show_default=True, help="The model's name on the server."),
        click.option("--url", default=DEFAULT_URL, show_default=True, help="host:port of Triton's gRPC service."),
    ):
        command = option(command)
    return command


def join(responses: Sequence[Response]) -> Response:
    """A turn's responses as one: all text and tokens, and the last one's counts."""
    last = responses[-1]
    return Response(
        text="".join(response.text for response in responses),
        token_ids=tuple(token for response in responses for token in response.token_ids),
        finish_reason=last.finish_reason,
        num_input_tokens=last.num_input_tokens,
        num_output_tokens=last.num_output_tokens,
        session_tokens=last.session_tokens,
        received_at=last.received_at,
    )


@contextlib.contextmanager
def new_session(client: Client, prefix: str) -> Iterator[str]:
    """A session id that nobody else has, starting with ``prefix``; the session is ended whatever happens."""
    session_id = f"{prefix}-{secrets.token_urlsafe(16)}"
    try:
        yield session_id
    finally:
        with contextlib.suppress(TrtstreamError):
            client.answer(session_id=session_id, session_end=True)


def make_tensor(name: str, value: Any, datatype: str, batch: bool = False) -> Any:
    """tritonclient's input tensor of a value or a list of values: of rank 1, or of rank 2 as a ``batch`` of one."""
    import numpy as np
    from tritonclient.grpc import InferInput
    from tritonclient.utils import triton_to_np_dtype

    items = value if isinstance(value, (list, tuple)) else [value]
    if datatype == "BYTES":
        items = [item.encode("utf-8", "replace") for item in items]
    array = np.array([items] if batch else items, dtype=triton_to_np_dtype(datatype))
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor
