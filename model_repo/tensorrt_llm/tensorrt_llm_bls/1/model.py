"""Triton's ``tensorrt_llm_bls`` model: preprocessing, tensorrt_llm and postprocessing called in turn for each request.

It answers as ``ensemble`` does, but it sees all of an answer: tokens are decoded behind those that came before them, so
that a character of several tokens comes out in one piece.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

REQUESTS = 256
"""How many run at a time. Their order is up to tensorrt_llm."""

TO_PREPROCESSING = {
    "text_input": "QUERY",
    "max_tokens": "REQUEST_OUTPUT_LEN",
    "bad_words": "BAD_WORDS_DICT",
    "stop_words": "STOP_WORDS_DICT",
    "end_id": "END_ID",
    "pad_id": "PAD_ID",
}
FROM_PREPROCESSING = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "BAD_WORDS_IDS": "bad_words_list",
    "STOP_WORDS_IDS": "stop_words_list",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
}
RENAMED = {
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "length_penalty": "len_penalty",
    "stream": "streaming",
}
OUTPUTS = ["output_ids", "sequence_length", "cum_log_probs", "output_log_probs"]
REPLACEMENT = "\ufffd"  # a decoder's sign for bytes that are not a complete character
MAX_PENDING = 32  # tokens; only broken text holds back more


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._pool = ThreadPoolExecutor(REQUESTS)

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            self._pool.submit(_answer, inputs, request.get_response_sender())

    def finalize(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _answer(inputs: dict[str, np.ndarray], sender: Any) -> None:
    try:
        if len(inputs["text_input"]) != 1:
            raise pb_utils.TritonModelException(
                "[invalid] tensorrt_llm_bls takes one prompt a request; ensemble takes batches"
            )
        for outputs in _responses(inputs, sender):
            sender.send(pb_utils.InferenceResponse(outputs))
    except Exception as error:
        sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))))
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _responses(inputs: dict[str, np.ndarray], sender: Any) -> Iterator[list[Any]]:
    """The outputs of each response. Ends early, with the engine's request, when the client has left."""
    asked = {TO_PREPROCESSING[name]: array for name, array in inputs.items() if name in TO_PREPROCESSING}
    prepared = _call("preprocessing", asked, list(FROM_PREPROCESSING))
    engine_inputs = {FROM_PREPROCESSING[name]: array for name, array in prepared.items()}
    engine_inputs |= {RENAMED.get(name, name): inputs[name] for name in inputs if name not in TO_PREPROCESSING}
    request_id = str(secrets.randbits(63))  # the engine knows a request by it
    text = StreamedText()
    for response in _request("tensorrt_llm", engine_inputs, OUTPUTS, request_id).exec(decoupled=True):
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        outputs = response.output_tensors()
        if not outputs:
            continue
        if sender.is_cancelled():
            stop = {**engine_inputs, "stop": np.array([[True]])}
            for _ in _request("tensorrt_llm", stop, OUTPUTS, request_id).exec(decoupled=True):
                pass
            return
        values = {tensor.name(): tensor.as_numpy() for tensor in outputs}
        tokens = values["output_ids"][0, 0, : values["sequence_length"][0, 0]].tolist()
        new = np.array([[text.push(tokens).encode()]], dtype=np.object_)
        yield [pb_utils.Tensor("text_output", new), *outputs]
    if rest := text.flush():
        yield [
            pb_utils.Tensor("text_output", np.array([[rest.encode()]], dtype=np.object_)),
            pb_utils.Tensor("output_ids", np.zeros((1, 1, 0), dtype=np.int32)),
            pb_utils.Tensor("sequence_length", np.zeros((1, 1), dtype=np.int32)),
        ]


class StreamedText:
    """The text of a growing token sequence. A token is decoded behind those that came before it."""

    def __init__(self) -> None:
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, tokens: list[int]) -> str:
        """The text that ``tokens`` complete: empty while a character is incomplete."""
        self._pending += tokens
        new = self._decode_pending()
        if new.endswith(REPLACEMENT) and len(self._pending) < MAX_PENDING:
            return ""
        if new:  # a special token gives no text, and as context it would hide the next one's leading space
            self._context = self._pending
        self._pending = []
        return new

    def flush(self) -> str:
        """The text that is held back when no more tokens come: a character that stays incomplete."""
        return self._decode_pending() if self._pending else ""

    def _decode_pending(self) -> str:
        both = [self._context, self._context + self._pending]
        tokens = np.zeros((1, 2, len(both[1])), dtype=np.int32)
        for row, ids in zip(tokens[0], both, strict=True):
            row[: len(ids)] = ids
        lengths = np.array([[len(ids) for ids in both]], dtype=np.int32)
        decoded = _call("postprocessing", {"TOKENS_BATCH": tokens, "SEQUENCE_LENGTH": lengths}, ["OUTPUT"])
        before, after = (text.decode() for text in decoded["OUTPUT"][0])
        return after[len(before) :]


def _call(model: str, inputs: dict[str, np.ndarray], outputs: list[str]) -> dict[str, np.ndarray]:
    response = _request(model, inputs, outputs).exec()
    if response.has_error():
        raise pb_utils.TritonModelException(response.error().message())
    return {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in outputs}


def _request(model: str, inputs: dict[str, np.ndarray], outputs: list[str], request_id: str = "") -> Any:
    tensors = [pb_utils.Tensor(name, array) for name, array in inputs.items()]
    return pb_utils.InferenceRequest(
        model_name=model, inputs=tensors, requested_output_names=outputs, request_id=request_id
    )
