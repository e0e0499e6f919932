"""Triton's ``preprocessing`` model: prompts and words to token ids. Needs numpy and tokenizers, of any version.

Errors begin with the codes of ``trtstream/runtime/request_fields.py``, which this container need not have.
"""

from __future__ import annotations

import json
from itertools import takewhile
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
        probe = self._tokenizer.encode("a", add_special_tokens=True)
        added = zip(probe.ids, probe.special_tokens_mask, strict=True)
        self._prefix = [token for token, _ in takewhile(lambda pair: pair[1], added)]  # BOS
        self._end_id = int(parameters["end_id"]["string_value"])
        self._more_end_ids = json.loads(parameters["more_end_ids"]["string_value"])
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
            "BAD_WORDS_IDS": self._encode_words("bad_words", inputs.get("BAD_WORDS_DICT"), len(prompts), []),
            "STOP_WORDS_IDS": self._encode_words(
                "stop_words",
                inputs.get("STOP_WORDS_DICT"),
                len(prompts),
                [] if "END_ID" in inputs else [[end] for end in self._more_end_ids],
            ),
            "REQUEST_OUTPUT_LEN": max_tokens,
            "OUT_END_ID": end_id.astype(np.int32),
            "OUT_PAD_ID": pad_id.astype(np.int32),
        }

    def _encode_prompt(self, text: bytes) -> list[int]:
        """Token ids, begun by what the tokenizer puts in front of texts, once. What it puts behind them is left out."""
        ids = self._tokenizer.encode(_decode("text_input", text), add_special_tokens=False).ids
        return ids if ids[: len(self._prefix)] == self._prefix else self._prefix + ids

    def _encode_words(self, name: str, words: np.ndarray | None, batch_size: int, more: list[list[int]]) -> np.ndarray:
        """[B, 2, n]: the ids of all words, one after the other, and where each word ends; padded with 0 and -1.

        ``more`` are the ids of further words, for every row.
        """
        rows: list[tuple[list[int], list[int]]] = []
        for row in words if words is not None else [()] * batch_size:
            ids: list[int] = []
            ends: list[int] = []
            for encoded in [encoding for word in row for encoding in self._encodings(_decode(name, word))] + more:
                ids += encoded
                ends.append(len(ids))
            rows.append((ids, ends))
        width = max(len(ids) for ids, _ in rows)
        array = np.tile(np.array([[0], [-1]], dtype=np.int32), (len(rows), 1, width))
        for target, (ids, ends) in zip(array, rows, strict=True):
            target[0, : len(ids)] = ids
            target[1, : len(ends)] = ends
        return array

    def _encodings(self, word: str) -> list[list[int]]:
        """The ids of a word at the start of a text and, where they differ, behind another: without a space in front."""
        head, alone, behind = (
            self._tokenizer.encode(text, add_special_tokens=False).ids for text in ("\n", word, f"\n{word}")
        )
        inside = behind[len(head) :] if behind[: len(head)] == head else alone
        return [ids for ids in ([alone] if inside == alone else [alone, inside]) if ids]


def _decode(name: str, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"[invalid] {name} is not UTF-8 (byte {error.start}); encode it as UTF-8") from None
