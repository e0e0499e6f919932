"""Stream an answer over gRPC with nothing but NVIDIA's client: pip install 'tritonclient[grpc]'.

python examples/grpc_stream.py [HOST:PORT]
"""

import queue
import sys

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput


def tensor(name: str, value: object, datatype: str, dtype: type) -> InferInput:
    """An input of one value, in a batch of one."""
    result = InferInput(name, [1, 1], datatype)
    result.set_data_from_numpy(np.array([[value]], dtype=dtype))
    return result


inputs = [
    tensor("text_input", "Which city is the capital of France?", "BYTES", np.object_),
    tensor("chat", True, "BOOL", np.bool_),
    tensor("stream", True, "BOOL", np.bool_),
    tensor("max_tokens", 64, "INT32", np.int32),
]

responses: queue.Queue = queue.Queue()
url = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"
no_proxy = [("grpc.enable_http_proxy", 0)]  # else gRPC asks http_proxy's proxy even for this machine
with InferenceServerClient(url, channel_args=no_proxy) as client:
    client.start_stream(lambda result, error: responses.put((result, error)))
    client.async_stream_infer("trtstream", inputs)
    finish_reason = ""
    while not finish_reason:  # it is empty until the last response
        result, error = responses.get(timeout=60)
        if error is not None:
            raise error
        print(result.as_numpy("text_output")[0, 0].decode(), end="", flush=True)
        finish_reason = result.as_numpy("finish_reason")[0, 0].decode()
    print(f"\n({finish_reason}, {result.as_numpy('num_output_tokens')[0, 0]} tokens)")
