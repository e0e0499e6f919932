"""Triton's ``preprocessing`` model: prompts and words to token ids. Needs numpy and tokenizers, of any version.

Errors begin with the codes of ``trtstream/runtime/request_fields.py``, which this container need not have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer


class TritonPythonModel:
    """Every request is a batch of B >= 1 prompts."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"], parameters["tokenizer_dir"]["string_value"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._bos_token = parameters["bos_token"]["string_value"]
        self._end_id = int(parameters["end_id"]["string_value"])
        self._max_input_len = int(parameters["max_input_len"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer({tensor.name(): tensor.as_numpy() for tensor in request.inputs()}) for request in requests]

    def _answer(self, inputs: dict[str, np.ndarray]) -> Any:
        try:
            outputs = self._outputs(inputs)
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])

    def _outputs(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        max_tokens = inputs["REQUEST_OUTPUT_LEN"]
        if max_tokens.min() < 1:
            raise ValueError(f"[invalid] max_tokens is {max_tokens.min()}; it must be at least 1")
        prompts = [self._encode_prompt(row[0]) for row in inputs["QUERY"]]
        lengths = np.array([[len(prompt)] for prompt in prompts], dtype=np.int32)
        if lengths.min() < 1:
            raise ValueError("[invalid] text_input is empty; give at least one token")
        if lengths.max() > self._max_input_len:
            raise ValueError(
                f"[too_long] text_input has {lengths.max()} tokens; the engine's max_input_len is {self._max_input_len}"
            )
        end_id = inputs.get("END_ID", np.full_like(lengths, self._end_id))
        pad_id = inputs.get("PAD_ID", end_id)
        input_id = np.repeat(pad_id, lengths.max(), axis=1).astype(np.int32)
        for row, prompt in zip(input_id, prompts, strict=True):
            row[: len(prompt)] = prompt
        return {
            "INPUT_ID": input_id,
            "REQUEST_INPUT_LEN": lengths,
            "BAD_WORDS_IDS": self._encode_words("bad_words", inputs.get("BAD_WORDS_DICT"), len(prompts)),
            "STOP_WORDS_IDS": self._encode_words("stop_words", inputs.get("STOP_WORDS_DICT"), len(prompts)),
            "REQUEST_OUTPUT_LEN": max_tokens,
            "OUT_END_ID": end_id.astype(np.int32),
            "OUT_PAD_ID": pad_id.astype(np.int32),
        }

    def _encode_prompt(self, text: bytes) -> list[int]:
        """Token ids, with the special tokens that a text gets, unless a chat template has begun it with BOS already."""
        decoded = _decode("text_input", text)
        begun = self._bos_token and decoded.startswith(self._bos_token)
        return self._tokenizer.encode(decoded, add_special_tokens=not begun).ids

    def _encode_words(self, name: str, words: np.ndarray | None, batch_size: int) -> np.ndarray:
        """[B, 2, n]: the ids of all words, one after the other, and where each word ends; padded with 0 and -1."""
        rows: list[tuple[list[int], list[int]]] = []
        for row in words if words is not None else [()] * batch_size:
            ids: list[int] = []
            ends: list[int] = []
            for word in row:
                encoded = self._tokenizer.encode(_decode(name, word), add_special_tokens=False).ids
                if encoded:
                    ids += encoded
                    ends.append(len(ids))
            rows.append((ids, ends))
        width = max(len(ids) for ids, _ in rows)
        array = np.tile(np.array([[0], [-1]], dtype=np.int32), (len(rows), 1, width))
        for target, (ids, ends) in zip(array, rows, strict=True):
            target[0, : len(ids)] = ids
            target[1, : len(ends)] = ends
        return array


def _decode(name: str, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"[invalid] {name} is not UTF-8 (byte {error.start}); encode it as UTF-8") from None
