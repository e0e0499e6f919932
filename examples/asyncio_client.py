"""Ask several questions at the same time with asyncio: the server decodes them in one batch.

python examples/asyncio_client.py [HOST:PORT]
"""

import asyncio
import sys
from collections.abc import AsyncIterator

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

QUESTIONS = (
    "Which city is the capital of France?",
    "Which city is the capital of Japan?",
    "How many days are in a week?",
)


def tensor(name: str, value: object, datatype: str, dtype: type) -> InferInput:
    """An input of one value, in a batch of one."""
    result = InferInput(name, [1, 1], datatype)
    result.set_data_from_numpy(np.array([[value]], dtype=dtype))
    return result


async def ask(client: InferenceServerClient, question: str) -> str:
    """One request on a stream of its own; its answer arrives token by token."""

    async def requests() -> AsyncIterator[dict]:
        inputs = [
            tensor("text_input", question, "BYTES", np.object_),
            tensor("chat", True, "BOOL", np.bool_),
            tensor("stream", True, "BOOL", np.bool_),
            tensor("max_tokens", 64, "INT32", np.int32),
        ]
        yield {"model_name": "trtstream", "inputs": inputs}

    answer = ""
    async for result, error in client.stream_infer(requests()):
        if error is not None:
            raise error
        answer += result.as_numpy("text_output")[0, 0].decode()
    return answer


async def main(url: str) -> None:
    no_proxy = [("grpc.enable_http_proxy", 0)]  # else gRPC asks http_proxy's proxy even for this machine
    async with InferenceServerClient(url, channel_args=no_proxy) as client:
        for answer in await asyncio.gather(*(ask(client, question) for question in QUESTIONS)):
            print(answer)


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"))
