"""Requests in the form in which NVIDIA's OpenAI frontend for Triton sends them, and what it reads of the responses.

The form is that of its requests to models that are not vLLM's, in release 2.73. The frontend itself runs in NVIDIA's
containers alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.deploy.serving.streams import Stream, final
from trtstream.deploy.client.client import Client

pytestmark = pytest.mark.triton

SAMPLED = {"temperature": 1.0, "top_p": 0.9, "frequency_penalty": 0.5, "presence_penalty": -0.25}


@pytest.fixture
def stream(server: Any) -> Iterator[Stream]:
    stream = Stream(server.grpc_url)
    yield stream
    stream.close()


def tensors(prompt: str, stream: bool, stop: list[str] | None = None, **asked: Any) -> dict[str, np.ndarray]:
    """The tensors for a completion: a number for what the client left out has OpenAI's default, or is not sent."""
    numbers = {"temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0} | asked
    seed = numbers.pop("seed", None)
    return {
        "text_input": np.array([[prompt.encode()]], np.object_),
        "stream": np.array([[stream]]),
        "max_tokens": np.array([[numbers.pop("max_tokens", 16)]], np.int32),
        **({} if stop is None else {"stop_words": np.array([[word.encode() for word in stop]], np.object_)}),
        **({} if seed is None else {"seed": np.array([[seed]], np.uint64)}),
        **{name: np.array([[value]], np.float32) for name, value in numbers.items()},
        "return_num_input_tokens": np.array([[True]]),
        "return_num_output_tokens": np.array([[True]]),
    }


def completion(stream: Stream, prompt: str, streamed: bool, **asked: Any) -> tuple[str, int, int]:
    """(text, prompt tokens, completion tokens), as the frontend makes them of a model's responses.

    The prompt is counted by the first response, and each response counts its part of the answer.
    """
    stream.send(**tensors(prompt, streamed, **asked))
    results = stream.all()
    if not streamed:  # the frontend takes one response, and perhaps an empty one with the final flag behind it
        assert len(results) == 1
    for result in results:
        outputs = {output.name: output for output in result.get_response().outputs}
        assert np.prod(outputs["text_output"].shape) == 1  # it reads the bytes of one text
        assert {outputs[name].datatype for name in ("num_input_tokens", "num_output_tokens")} == {"INT32"}
    assert [final(result) for result in results] == [False] * (len(results) - 1) + [True]
    text = b"".join(result.as_numpy("text_output").item() for result in results).decode()
    counts = [result.as_numpy("num_output_tokens").item() for result in results]
    return text, results[0].as_numpy("num_input_tokens").item(), sum(counts)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "max_tokens": 40, "stop": ["}"]},
        {**SAMPLED, "seed": 2**64 - 1, "max_tokens": 24, "stop": ["no such word", "nor this"]},
    ],
)
def test_an_answer_is_the_models(server: Any, stream: Stream, asked: dict[str, Any], streamed: bool) -> None:
    with Client(server.grpc_url) as client:
        ours = {"max_tokens": 16, "stop_words": asked.get("stop"), **asked}
        ours.pop("stop", None)
        expected = client.answer(text_input="Hello", **ours)
    found = completion(stream, "Hello", streamed, **asked)
    assert found == (expected.text, expected.num_input_tokens, expected.num_output_tokens)


def test_the_prompt_of_a_chat_is_the_templates(server: Any, engine: Path, stream: Stream) -> None:
    """The frontend renders the template itself, with the tokenizer that its --tokenizer names."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(engine / "tokenizer")
    messages = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    with Client(server.grpc_url) as client:
        expected = client.answer(text_input="Hi", chat=True, max_tokens=16)
    assert completion(stream, prompt, True, temperature=0.0)[:2] == (expected.text, expected.num_input_tokens)


@pytest.mark.parametrize("name", ["guided_decoding_guide", "lora_task_id", "sampling_parameters"])
def test_what_the_model_does_not_do_is_refused_by_name(stream: Stream, name: str) -> None:
    with pytest.raises(InferenceServerException, match=f"unexpected inference input '{name}'"):
        stream.ask(**tensors("Hello", False), **{name: np.array([[b"x"]], np.object_)})
