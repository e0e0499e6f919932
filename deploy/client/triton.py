"""A connection to one model on Triton, over gRPC streams: the base of the clients of both kinds of service."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import queue
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trtstream.deploy.contract import parse_error
from trtstream.errors import TrtstreamError
from trtstream.extras import require_extra
from trtstream.runtime.requests import TurnOutput, join

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self

DEFAULT_PORT = 8001
DEFAULT_URL = f"127.0.0.1:{DEFAULT_PORT}"
PROBE_SECONDS = 2.0
NO_PROXY = [
    ("grpc.enable_http_proxy", 0),  # else gRPC asks http_proxy's proxy for this machine
    ("grpc.max_send_message_length", -1),  # these two as tritonclient has them
    ("grpc.max_receive_message_length", -1),
]


@dataclass(frozen=True)
class Response(TurnOutput):
    """One response of a turn. ``received_at`` is when it arrived, in seconds of `time.perf_counter`."""

    received_at: float = field(kw_only=True)


@dataclass(frozen=True)
class ServedModel:
    """Triton's description of a model: its tensors' datatypes by name, and the parameters of its config.pbtxt."""

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


class TritonClient(ABC):
    """A connection to the model ``model_name`` of the Triton server at ``url`` (``host:port`` of its gRPC service).

    One turn at a time: a client belongs to one thread. With ``tls_ca``, a PEM file of the certificates to trust, the
    connection is encrypted. ``timeout`` is how long the server may stay silent, in seconds. Whatever goes wrong between
    here and the model is raised as TrtstreamError, with the model's error code where it sent one.
    """

    checks: ClassVar[Mapping[str, Check | str]]
    """The checks of ``trtstream smoke`` on such a service, by name. A str is the reason why a check does not apply."""

    def __init__(self, url: str, model_name: str, tls_ca: Path | None = None, *, timeout: float = 120.0) -> None:
        require_extra("tritonclient.grpc", "client", "a client of Triton")
        from tritonclient.grpc import InferenceServerClient

        self.url = _complete(url)
        self.model_name = model_name
        self.timeout = timeout
        options: dict[str, Any] = {} if tls_ca is None else {"ssl": True, "root_certificates": str(tls_ca)}
        if is_loopback(self.url):
            options["channel_args"] = NO_PROXY
        self._triton = InferenceServerClient(self.url, **options)
        self._arrivals: queue.SimpleQueue[tuple[float, Any, Any] | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._triton.stop_stream(cancel_requests=True)
        self._triton.close()

    @abstractmethod
    def generate(self, **inputs: Any) -> Generator[Response, None, None]:
        """Send one request and yield its responses as they arrive.

        ``inputs`` are tensors of `request_fields.INPUTS` by name, as Python values; None leaves one out. Closing the
        iterator before its end cancels the request on the server.
        """

    @abstractmethod
    def session_note(self, session_id: str) -> str:
        """A line for the user about the session of a conversation."""

    @abstractmethod
    def require_resumable(self, session_id: str) -> None:
        """Raise TrtstreamError if another client cannot have left a session here to continue."""

    @abstractmethod
    def load_notes(self, turns: int) -> list[str]:
        """Lines for the user before a load of sessions of ``turns`` turns of ``input_ids``."""

    def answer(self, **inputs: Any) -> Response:
        """Send one request and wait for its end: all its text and tokens as one response."""
        return join(list(self.generate(**inputs)))

    def cancel(self) -> None:
        """From any thread: cancel the request that is under way; whoever waits for it gets a TrtstreamError."""
        self._arrivals.put(None)

    def health(self) -> dict[str, bool]:
        """Triton's own answers: is the server ``live`` and ``ready``, is the ``model`` ready."""
        return {
            "live": self._call("is_server_live"),
            "ready": self._call("is_server_ready"),
            "model": self._call("is_model_ready", self.model_name),
        }

    def model(self) -> ServedModel:
        """Ask Triton for the model's metadata and configuration. A model that is missing has the code ``not_found``."""
        metadata = self._call("get_model_metadata", self.model_name)
        config = self._call("get_model_config", self.model_name).config
        return ServedModel(
            inputs={tensor.name: tensor.datatype for tensor in metadata.inputs},
            outputs={tensor.name: tensor.datatype for tensor in metadata.outputs},
            decoupled=config.model_transaction_policy.decoupled,
            parameters={name: value.string_value for name, value in config.parameters.items()},
        )

    def _call(self, method: str, *arguments: str) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return getattr(self._triton, method)(*arguments, client_timeout=self.timeout)
        except InferenceServerException as error:
            raise self._error(error) from None

    def _stream(
        self, model_name: str, tensors: Sequence[Any], request_id: str = "", headers: Mapping[str, str] | None = None
    ) -> Generator[tuple[float, Any], None, None]:
        """Send one request to a decoupled model; yield (when it arrived, tritonclient's result) of each response."""
        from tritonclient.utils import InferenceServerException

        arrivals: queue.SimpleQueue[tuple[float, Any, Any] | None] = queue.SimpleQueue()
        self._arrivals = arrivals
        answered = complete = False
        self._triton.start_stream(
            lambda result, error: arrivals.put((time.perf_counter(), result, error)), headers=headers or {}
        )
        try:
            # A stream that is dead already refuses the request; why it died is in the queue.
            with contextlib.suppress(InferenceServerException):
                self._triton.async_stream_infer(
                    model_name, list(tensors), request_id=request_id, enable_empty_final_response=True
                )
            while not complete:
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
                complete = message.parameters["triton_final_response"].bool_param
                if message.outputs:
                    answered = True
                    yield received_at, result
            if not answered:
                raise TrtstreamError(f"the model {model_name!r} at {self.url} ended a request without an answer")
        finally:
            self._triton.stop_stream(cancel_requests=not complete)

    def _error(self, error: Any, answered: bool = False) -> TrtstreamError:
        """One line for an error of tritonclient: for its gRPC status, or where it has none the model's own message."""
        status = (error.status() or "").removeprefix("StatusCode.")
        code, message = parse_error(" ".join(str(error.message()).split()))
        if status == "UNAVAILABLE" and (answered or message.startswith("Stream removed")):
            return TrtstreamError(
                f"the server at {self.url} or its model went away in the middle of an answer ({message}); "
                "ask again in a moment: `trtstream serve` starts it again"
            )
        if status == "UNAVAILABLE" and _speaks_http(self.url):
            return TrtstreamError(
                f"{self.url} is an HTTP service; give --url the port of Triton's gRPC service, usually {DEFAULT_PORT}"
            )
        if status == "UNAVAILABLE":
            return TrtstreamError(
                f"no Triton gRPC service answers at {self.url}: "
                f"start one with `trtstream serve` or give --url ({message})"
            )
        if status == "DEADLINE_EXCEEDED":
            return TrtstreamError(f"the server at {self.url} did not answer within {self.timeout:g} s")
        if status == "NOT_FOUND":
            return TrtstreamError(
                f"the server at {self.url} has no model {self.model_name!r}; see --model-name", code="not_found"
            )
        return TrtstreamError(message, code)


Check = Callable[[TritonClient, ServedModel], str]
"""One check of a service; returns its measurement, or raises CheckFailed or TrtstreamError."""


def make_tensor(name: str, datatype: str, array: np.ndarray) -> Any:
    """tritonclient's input tensor."""
    from tritonclient.grpc import InferInput

    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


@contextlib.contextmanager
def new_session(client: TritonClient, prefix: str) -> Iterator[str]:
    """A session id that nobody else has, starting with ``prefix``; the session is ended whatever happens."""
    session_id = f"{prefix}-{secrets.token_urlsafe(16)}"
    try:
        yield session_id
    finally:
        with contextlib.suppress(TrtstreamError):
            client.answer(session_id=session_id, session_end=True)


def _complete(url: str) -> str:
    """``url`` with a port: without one, gRPC would take 443."""
    if "://" in url:
        raise TrtstreamError(f"--url is {url!r}; give the gRPC service as host:port, for example {DEFAULT_URL}")
    return url if ":" in url.rpartition("]")[2] else f"{url}:{DEFAULT_PORT}"


def is_loopback(url: str) -> bool:
    """Whether ``url``, a host:port, is on this machine."""
    host = url.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _speaks_http(url: str) -> bool:
    try:
        with contextlib.closing(http.client.HTTPConnection(url, timeout=PROBE_SECONDS)) as connection:
            connection.request("GET", "/")
            connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    return True
