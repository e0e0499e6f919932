"""The checks of ``trtstream smoke`` on a service of Triton's tensorrtllm backend."""

from __future__ import annotations

from trtstream.deploy.client import checks
from trtstream.deploy.client.checks import PROMPT, describe_tensors, require_refusal
from trtstream.deploy.client.tensorrt_llm.tensors import OUTPUTS, TEXT_INPUTS
from trtstream.deploy.client.triton import Check, ServedModel, TritonClient

NO_SESSIONS = "the tensorrtllm backend keeps no sessions"


def check_metadata(client: TritonClient, model: ServedModel) -> str:
    inputs = dict(TEXT_INPUTS)
    inputs["seed" if "seed" in model.inputs else "random_seed"] = inputs.pop("random_seed")
    return describe_tensors(model, inputs, OUTPUTS)


def check_bad_requests(client: TritonClient, model: ServedModel) -> str:
    limit = model.parameter("max_input_len")
    require_refusal(client, f"a prompt beyond {limit} tokens", "max_input_len", text_input=PROMPT * limit)
    require_refusal(client, "max_tokens -1", "max_tokens", text_input=PROMPT, max_tokens=-1)
    return "2 refused, each with its own error"


CHECKS: dict[str, Check | str] = {
    **checks.CHECKS,
    "metadata": check_metadata,
    "bad requests": check_bad_requests,
    "session beyond W": NO_SESSIONS,
    "stop words": "the tensorrtllm backend compares tokens, and answers with the word",
    "session_tokens": NO_SESSIONS,
    "turn ids": NO_SESSIONS,
    "session_end": NO_SESSIONS,
}
