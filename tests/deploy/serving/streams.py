"""Requests to a served model with nothing but tritonclient or HTTP, and their answers."""

from __future__ import annotations

import json
import queue
import urllib.request
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import np_to_triton_dtype

MODEL = "trtstream"
DTYPES = {bool: np.bool_, int: np.int32, float: np.float32, str: np.object_}


def tensors(**values: Any) -> list[InferInput]:
    """A value or a list of them is a batch of one; an array of rank 2 has its shape."""
    inputs = []
    for name, value in values.items():
        items = value if isinstance(value, (list, np.ndarray)) else [value]
        dtype = value.dtype if isinstance(value, np.ndarray) else DTYPES.get(type(items[0]), np.object_)
        array = np.atleast_2d(np.array([item.encode() if isinstance(item, str) else item for item in items], dtype))
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


class Stream:
    """One gRPC stream, and the responses on it."""

    def __init__(self, url: str, client: InferenceServerClient | None = None) -> None:
        self.client = client or InferenceServerClient(url)
        self.arrivals: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client.start_stream(lambda result, error: self.arrivals.put((result, error)))

    def send(self, options: dict[str, Any] | None = None, **inputs: Any) -> None:
        self.client.async_stream_infer(MODEL, tensors(**inputs), **(options or {}))

    def next(self) -> Any:
        result, error = self.arrivals.get(timeout=30)
        if error is not None:
            raise error
        return result

    def all(self) -> list[Any]:
        results = [self.next()]
        while not final(results[-1]):
            results.append(self.next())
        return results

    def ask(self, options: dict[str, Any] | None = None, **inputs: Any) -> Any:
        self.send(options, **inputs)
        results = self.all()
        assert len(results) == 1
        return results[0]

    def close(self) -> None:
        self.client.stop_stream(cancel_requests=True)
        self.client.close()


def final(result: Any) -> bool:
    return result.get_response().parameters["triton_final_response"].bool_param


def text(*results: Any) -> str:
    return b"".join(result.as_numpy("text_output")[0, 0] for result in results).decode()


def ids(*results: Any) -> list[int]:
    return [token for result in results for token in result.as_numpy("output_ids")[0].tolist()]


def number(result: Any, name: str) -> int:
    return int(result.as_numpy(name)[0, 0])


def reason(result: Any) -> str:
    return result.as_numpy("finish_reason")[0, 0].decode()


def post(server: Any, endpoint: str, body: dict[str, Any]) -> Any:
    url = f"http://{server.http_url}/v2/models/{MODEL}/{endpoint}"
    return urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=30)
