"""Malformed requests to a served model over both protocols: each gets an answer or one line, and harms no other."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from benchmarks.fuzz.report import Report
from benchmarks.fuzz.request_cases import Case, Tensor, as_bytes, make_case
from trtstream.deploy.contract import CODE, DTYPES

MODEL = "trtstream"
PATH = f"/v2/models/{MODEL}"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
SECONDS = 30.0
PROBE = {"text_input": "The same text", "max_tokens": 24, "stream": True, "ignore_eos": True}
BATCH = 50
TRACEBACK = re.compile(r'Traceback|File "|\.py\b|line \d+, in')
Send = Callable[[str, Random], str]
"""``send(address, random)``: one request; returns the text of its answer or error."""


class Refused(Exception):
    """The service's error for a request; its argument is the message as it came."""


class Closed(Exception):
    """The stream ended without an answer, which is gRPC's to a message that is none."""


def fuzz_requests(grpc_url: str, http_url: str, count: int, seed: int) -> Report:
    """Send ``count`` requests, one after the other, and look at the service between them."""
    report, expected = Report(), probe(http_url)
    for number in range(count):
        random = Random(f"{seed}/{number}")
        send, address = random.choice(((stream, grpc_url), (garbage, grpc_url), *3 * ((generate, http_url),)))
        if random.random() < 0.3:
            send, address = stream, grpc_url
        name = f"request {number} of seed {seed} by {send.__name__}"
        started = time.monotonic()
        try:
            send(address, random)
            report.outcomes[f"{send.__name__}: answered"] += 1
        except Refused as error:
            message = str(error)
            code = CODE.search(message)
            report.outcomes[f"{send.__name__}: refused{f' [{code[1]}]' if code else ''}"] += 1
            # Triton's own messages, without a code, repeat names as they came.
            if TRACEBACK.search(message) or (code and (code[1] == "internal" or not message.isprintable())):
                report.faults.append(f"{name}: {message[:500]!r}")
        except Closed:
            report.outcomes[f"{send.__name__}: closed"] += 1
            report.faults += [] if send is garbage else [f"{name}: the stream ended without an answer"]
        except Exception as error:
            report.outcomes[f"{send.__name__}: no answer"] += 1
            report.faults.append(f"{name}: {type(error).__name__}: {error}"[:500])
        if time.monotonic() - started > SECONDS / 2:
            report.faults.append(f"{name} took {time.monotonic() - started:.0f} s")
        if number % BATCH == BATCH - 1 or number == count - 1:
            if (found := probe(http_url)) != expected:
                report.faults.append(f"after {name} the probe's text is {found!r}, before it {expected!r}")
            if (status := request("GET", http_url, "/ready")[0]) != 200:
                report.faults.append(f"after {name} /ready is {status}")
    return report


def probe(http_url: str) -> str:
    """The text of a stream that is always the same."""
    status, body = request("POST", http_url, f"{PATH}/generate_stream", json.dumps(PROBE).encode())
    if status != 200:
        return f"{status} {body!r}"
    events = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]
    return "".join(event.get("text_output", event.get("error")) for event in events)


def request(method: str, http_url: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """An HTTP request's status and body."""
    connection = http.client.HTTPConnection(http_url, timeout=SECONDS)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def generate(http_url: str, random: Random) -> str:
    """By HTTP, at each of its endpoints."""
    case, endpoint = make_case(random), random.choice(("generate", "generate_stream", "generate_stream", "infer"))
    body = case.infer_json(random) if endpoint == "infer" else case.json(random)
    status, answer = request("POST", http_url, f"{PATH}/{endpoint}", body)
    text = answer.decode(errors="replace")  # Triton's own messages repeat names as they came
    if text.startswith("data: "):
        text = text.strip().split("\n\n")[-1].removeprefix("data: ")
    values = json.loads(text)
    if "error" in values:
        raise Refused(values["error"])
    if status != 200:
        raise ValueError(f"status {status}: {text[:200]}")
    return text


def stream(grpc_url: str, random: Random) -> str:
    """By gRPC, with the fields of the protocol set one by one."""
    return _call(grpc_url, message(make_case(random), random).SerializeToString())


def garbage(grpc_url: str, random: Random) -> str:
    """By gRPC, a message that is none, or is damaged."""
    data = bytearray(message(make_case(random), random).SerializeToString())
    if random.random() < 0.3:
        return _call(grpc_url, random.randbytes(random.choice((0, 1, 20, 5000))))
    for _ in range(random.randint(1, 4)):
        data[random.randrange(len(data))] = random.randrange(256)
    return _call(grpc_url, bytes(data[: random.choice((len(data), random.randrange(len(data))))]))


def message(case: Case, random: Random) -> Any:
    """The case in protobuf; its values as raw bytes, or sometimes typed."""
    from tritonclient.grpc.service_pb2 import ModelInferRequest

    sent = ModelInferRequest(
        model_name=MODEL if random.random() < 0.98 else "other\n", id=random.choice(("", "r", "a\nb"))
    )
    for name, value in case.parameters.items():
        kinds: dict[type, str] = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
        if type(value) in kinds:
            setattr(sent.parameters[utf8(name)], kinds[type(value)], utf8(value) if isinstance(value, str) else value)
    for tensor in case.tensors:
        added = sent.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if random.random() < 0.05 and tensor.datatype == "BYTES":
            added.contents.bytes_contents.extend(as_bytes(str(value)) for value in tensor.values)
        else:
            sent.raw_input_contents.append(raw(tensor))
    if random.random() < 0.03:
        sent.raw_input_contents.append(b"\xff" * 7)
    return sent


def utf8(text: str) -> str:
    """``text`` as protobuf's strings can hold it."""
    return text.encode(errors="replace").decode()


def raw(tensor: Tensor) -> bytes:
    """The values in Triton's binary form: numbers as they are, each text behind its length."""
    if all(isinstance(value, str) for value in tensor.values):
        return b"".join(len(text).to_bytes(4, "little") + text for text in map(as_bytes, tensor.values))
    numbers = [0 if isinstance(value, str) else value for value in tensor.values]
    kind = DTYPES.get(tensor.datatype, "float64")
    with np.errstate(invalid="ignore"):  # -1 as an unsigned number, nan as a whole one
        return np.array(numbers).astype("float64" if kind == "object" else kind).tobytes()


def _call(grpc_url: str, data: bytes) -> str:
    """Send one message on a stream of its own; the last answer on it."""
    import grpc
    from tritonclient.grpc.service_pb2 import ModelStreamInferResponse

    with grpc.insecure_channel(grpc_url, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.stream_stream(
            STREAM, request_serializer=None, response_deserializer=ModelStreamInferResponse.FromString
        )
        try:
            answers = list(call(iter([data]), timeout=SECONDS))
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                raise ValueError(f"{error.code()}: {error.details()}") from None
            raise Refused(error.details()) from None
    if not answers:
        raise Closed
    if answers[-1].error_message:
        raise Refused(answers[-1].error_message)
    return str(answers[-1])
