"""The tensors of the tensorrtllm backend's models that our client uses."""

from __future__ import annotations

from trtstream.runtime.request_fields import INPUTS

ENSEMBLE = "ensemble"
ENGINE_MODEL = "tensorrt_llm"

SAMPLING = ("max_tokens", "stream", "temperature", "top_k", "top_p", "repetition_penalty", "random_seed", "end_id")

TEXT_INPUTS: dict[str, str] = {name: INPUTS[name].datatype for name in ("text_input", "stop_words", *SAMPLING)}
"""The ensemble's inputs and their datatypes: the same as ours, as far as they go."""

ID_INPUTS: dict[str, str] = {
    "input_ids": "INT32",
    "input_lengths": "INT32",
    **{name: INPUTS[name].datatype for name in SAMPLING},
}
"""The inputs of the engine's own model; some have other names there: `ENGINE_NAMES`."""

ENGINE_NAMES = {
    "max_tokens": "request_output_len",
    "stream": "streaming",
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
}

OUTPUTS = {"text_output": "BYTES", "output_ids": "INT32", "sequence_length": "INT32"}

NO_END_ID = -1
