"""Triton's ``postprocessing`` model: token ids to text. Needs numpy and tokenizers, of any version.

It sees each response by itself. Of a streamed answer that is a single token, so that a character of several tokens
comes out broken (U+FFFD): ``tensorrt_llm_bls`` puts those together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's sign for the space before a word. Decoding drops it from the first token, but not all are first."""


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"], parameters["tokenizer_dir"]["string_value"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._skip_special_tokens = parameters["skip_special_tokens"]["string_value"].lower() == "true"

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = []
        for request in requests:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            texts = [
                [self._decode(tokens[:length].tolist()).encode() for tokens, length in zip(beams, lengths, strict=True)]
                for beams, lengths in zip(inputs["TOKENS_BATCH"], inputs["SEQUENCE_LENGTH"], strict=True)
            ]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array(texts, dtype=np.object_))]))
        return responses

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=self._skip_special_tokens)
        first = (self._tokenizer.id_to_token(tokens[0]) or "") if tokens else ""
        return f" {text}" if first.startswith(SPACE) and not text.startswith(" ") else text
