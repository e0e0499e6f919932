"""Triton's gRPC service from an event loop: requests to its models as messages, and streams of answers.

tritonclient has the messages. Its client for event loops sends a stream's head, its request and its end one by one.
Here a stream of one request is a call with one message, so that all three leave in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from trtstream.deploy.contract import to_array
from trtstream.runtime.request_fields import INPUTS

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
WINDOW_SIZES = ("max_attention_window", "sink_token_length")
CONFIG_SECONDS = 2.0


@dataclass(frozen=True)
class TritonAddress:
    """``url`` (host:port) of a gRPC service, options of gRPC's channel, and a PEM file to trust, for TLS."""

    url: str
    options: list[tuple[str, object]]
    root_certificates: Path | None = None


class TritonService:
    """A connection, which is made when it is first needed and again after it was lost. Belongs to one event loop."""

    def __init__(self, address: TritonAddress) -> None:
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        if address.root_certificates is None:
            self._channel = grpc.aio.insecure_channel(address.url, address.options)
        else:
            trusted = grpc.ssl_channel_credentials(address.root_certificates.read_bytes())
            self._channel = grpc.aio.secure_channel(address.url, trusted, address.options)
        self._stream_infer = self._channel.unary_stream(
            STREAM_INFER,
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        self._service = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close()

    def stream(self, request: Any, headers: Mapping[str, str]) -> grpc.aio.UnaryStreamCall[Any, Any]:
        """Send a `request_message`; the answers (ModelStreamInferResponse) are to be iterated, or cancelled."""
        return self._stream_infer(request, metadata=tuple(headers.items()))

    async def window_sizes(self, model: str) -> dict[str, int]:
        """The sizes of a model's window in tokens, by the names of its config's parameters; {} while Triton is away."""
        from tritonclient.grpc import service_pb2

        try:
            answer = await self._service.ModelConfig(service_pb2.ModelConfigRequest(name=model), timeout=CONFIG_SECONDS)
        except grpc.RpcError:
            return {}
        parameters = answer.config.parameters
        return {name: int(parameters[name].string_value) for name in WINDOW_SIZES if name in parameters}


def request_message(model: str, inputs: Mapping[str, Any], request_id: str) -> Any:
    """The ModelInferRequest of tensors of `request_fields.INPUTS` by name, as Python values; None leaves one out.

    With ``session_start`` among them the session is started over.
    """
    from tritonclient.grpc import service_pb2
    from tritonclient.utils import serialize_byte_tensor

    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    values = {**inputs}
    if values.pop("session_start", False):
        request.parameters["sequence_id"].string_param = values.pop("session_id")
        request.parameters["sequence_start"].bool_param = True
    for name, value in values.items():
        if value is None:
            continue
        datatype = INPUTS[name].datatype
        array = to_array(value, datatype)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        # A tensor of texts becomes an array of one value, all its bytes, or of none.
        content = b"".join(serialize_byte_tensor(array).flat) if datatype == "BYTES" else array.tobytes()
        request.raw_input_contents.append(content)
    return request
