"""The packaged preprocessing, postprocessing, ensemble and BLS models in a real Triton, and our clients against them.

TensorRT-LLM itself needs a GPU: in the place of the C++ backend is an engine of the cpu target with its tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

import trtstream
from tests.command_line import run_trtstream
from tests.deploy.server import Server, serving
from tests.deploy.tensorrt_llm.engines import WINDOW, write_stand_in_repository
from trtstream.deploy.client.client import Client
from trtstream.deploy.client.connect import connect
from trtstream.deploy.client.tensorrt_llm.client import RESENDS, TensorrtLlmClient
from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import join

pytestmark = pytest.mark.triton

GREEDY = {"temperature": 0.0, "ignore_eos": True}
PROMPT = "The sun rises"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_stand_in_repository(tmp_path_factory.mktemp("tensorrt_llm"))


@pytest.fixture(scope="module")
def service(repository: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(repository[0], tmp_path_factory.mktemp("service") / "log") as service:
        yield service


@pytest.fixture(scope="module")
def greedy(repository: tuple[Path, Path], service: Server):
    """``greedy(ids, n)``: the engine's answer by the Python API."""
    with trtstream.load(repository[1]) as llm:

        def answer(ids: list[int], max_tokens: int) -> list[int]:
            outputs = llm.stream(input_ids=tuple(ids), max_tokens=max_tokens, ignore_eos=True)
            return [token for output in outputs for token in output.token_ids]

        yield answer


@pytest.fixture
def client(service: Server) -> Iterator[TensorrtLlmClient]:
    with TensorrtLlmClient(service.grpc_url) as client:
        yield client


@pytest.fixture
def bls(service: Server) -> Iterator[TensorrtLlmClient]:
    with TensorrtLlmClient(service.grpc_url, "tensorrt_llm_bls") as client:
        yield client


def infer(service: Server, model: str, **inputs: tuple[str, object]) -> dict[str, np.ndarray]:
    """A plain Triton client's request to a model that is not decoupled; ``inputs`` are (datatype, values)."""
    tensors = []
    for name, (datatype, values) in inputs.items():
        array = np.array(values, dtype={"BYTES": np.object_, "INT32": np.int32}[datatype])
        tensors.append(InferInput(name, list(array.shape), datatype))
        tensors[-1].set_data_from_numpy(array)
    with closing(InferenceServerClient(service.grpc_url)) as triton:
        result = triton.infer(model, tensors)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


@pytest.mark.slow
def test_all_models_are_served(service: Server) -> None:
    assert service.models == ["ensemble", "postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls"]


def test_preprocessing(service: Server) -> None:
    outputs = infer(
        service,
        "preprocessing",
        QUERY=("BYTES", [[b"abc"], ["größer".encode()]]),
        REQUEST_OUTPUT_LEN=("INT32", [[5], [6]]),
        STOP_WORDS_DICT=("BYTES", [[b"ab", b"", b"c"], [b"", b"", b"x"]]),
        PAD_ID=("INT32", [[7], [7]]),
    )
    word = list("größer".encode())
    assert outputs["INPUT_ID"].tolist() == [[*b"abc", *[7] * (len(word) - 3)], word]
    assert outputs["REQUEST_INPUT_LEN"].tolist() == [[3], [len(word)]]
    assert outputs["REQUEST_OUTPUT_LEN"].tolist() == [[5], [6]]
    # Each row ends in 5, the other end of the checkpoint's answers.
    stop_words = [[[*b"abc", 5], [2, 3, 4, -1]], [[*b"x", 5, 0, 0], [1, 2, -1, -1]]]
    assert outputs["STOP_WORDS_IDS"].tolist() == stop_words
    assert outputs["BAD_WORDS_IDS"].shape == (2, 2, 0)
    assert outputs["OUT_END_ID"].tolist() == [[2], [2]]
    assert outputs["OUT_PAD_ID"].tolist() == [[7], [7]]


def test_a_request_names_its_own_end(service: Server) -> None:
    query = {"QUERY": ("BYTES", [[b"abc"]]), "REQUEST_OUTPUT_LEN": ("INT32", [[5]])}
    outputs = infer(service, "preprocessing", END_ID=("INT32", [[9]]), **query)
    assert outputs["OUT_END_ID"].tolist() == [[9]]
    assert outputs["STOP_WORDS_IDS"].shape == (1, 2, 0)


@pytest.mark.parametrize(
    ("query", "max_tokens", "message"),
    [
        (b"", 1, "text_input is empty"),
        (b"x" * (WINDOW + 1), 1, f"text_input has {WINDOW + 1} tokens; the engine's max_input_len is {WINDOW}"),
        (b"x", 0, "max_tokens is 0; it must be at least 1"),
        (b"x\xff", 1, r"text_input is not UTF-8 \(byte 1\)"),
    ],
)
def test_preprocessing_refuses(service: Server, query: bytes, max_tokens: int, message: str) -> None:
    with pytest.raises(InferenceServerException, match=message):
        infer(service, "preprocessing", QUERY=("BYTES", [[query]]), REQUEST_OUTPUT_LEN=("INT32", [[max_tokens]]))


def test_postprocessing(service: Server) -> None:
    word = list("größer".encode())
    tokens = [[[*b"abc", *[0] * (len(word) - 3)], word]]
    outputs = infer(
        service,
        "postprocessing",
        TOKENS_BATCH=("INT32", tokens),
        SEQUENCE_LENGTH=("INT32", [[3, len(word)]]),
    )
    assert [text.decode() for text in outputs["OUTPUT"][0]] == ["abc", "größer"]


def test_the_ensemble_streams(client: TensorrtLlmClient, greedy) -> None:
    responses = list(client.generate(text_input=PROMPT, max_tokens=12, stream=True, **GREEDY))
    assert [len(response.token_ids) for response in responses] == [1] * 12 + [0]
    assert [response.finish_reason for response in responses] == [""] * 12 + ["length"]
    assert list(join(responses).token_ids) == greedy(list(PROMPT.encode()), 12)
    for response in responses:
        assert response.text == bytes(response.token_ids).decode(errors="replace")


def test_the_ensemble_answers_in_one_piece(client: TensorrtLlmClient, greedy) -> None:
    answer = client.answer(text_input=PROMPT, max_tokens=12, **GREEDY)
    expected = greedy(list(PROMPT.encode()), 12)
    assert list(answer.token_ids) == expected
    assert answer.text == bytes(expected).decode(errors="replace")


def test_an_answer_ends_at_end_id(client: TensorrtLlmClient, greedy) -> None:
    expected = greedy(list(PROMPT.encode()), 12)
    end = expected[-1]
    answer = client.answer(text_input=PROMPT, max_tokens=12, temperature=0.0, end_id=end)
    assert list(answer.token_ids) == expected[: expected.index(end) + 1][: len(answer.token_ids)]
    assert len(answer.token_ids) <= expected.index(end) + 1


def test_the_bls_model_breaks_no_character(bls: TensorrtLlmClient, greedy) -> None:
    """Its pieces join up to the text of all tokens, though most of this model's tokens are parts of no character."""
    expected = greedy(list(PROMPT.encode()), 40)
    assert max(expected) > 127
    answer = join(list(bls.generate(text_input=PROMPT, max_tokens=40, stream=True, **GREEDY)))
    assert list(answer.token_ids) == expected
    assert answer.text == bytes(expected).decode(errors="replace")
    assert bls.answer(text_input=PROMPT, max_tokens=40, **GREEDY).text == answer.text


def test_errors_of_the_bls_model(bls: TensorrtLlmClient) -> None:
    with pytest.raises(TrtstreamError, match="max_input_len"):
        bls.answer(text_input="x" * (WINDOW + 1), max_tokens=1)
    assert len(bls.answer(text_input="x", max_tokens=1, **GREEDY).token_ids) == 1


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_a_client_that_leaves(service: Server, model: str) -> None:
    """Four endless answers would fill the engine; after their clients have left a fifth runs at once."""
    with TensorrtLlmClient(service.grpc_url, model, timeout=20) as client:
        for _ in range(5):
            endless = client.generate(text_input=PROMPT, max_tokens=100_000, stream=True, **GREEDY)
            with closing(endless):
                next(endless)
        assert len(client.answer(text_input=PROMPT, max_tokens=2, **GREEDY).token_ids) == 2


def test_requests_run_side_by_side(service: Server, bls: TensorrtLlmClient) -> None:
    with TensorrtLlmClient(service.grpc_url, "tensorrt_llm_bls") as other:
        endless = bls.generate(text_input=PROMPT, max_tokens=100_000, stream=True, **GREEDY)
        with closing(endless):
            next(endless)
            assert len(other.answer(text_input=PROMPT, max_tokens=2, **GREEDY).token_ids) == 2
            next(endless)


def test_detection(service: Server, server: Server) -> None:
    with connect(service.grpc_url) as client:
        assert (type(client), client.model_name) == (TensorrtLlmClient, "ensemble")
    with connect(service.grpc_url, "tensorrt_llm_bls") as client:
        assert (type(client), client.model_name) == (TensorrtLlmClient, "tensorrt_llm_bls")
    with connect(server.grpc_url) as client:
        assert (type(client), client.model_name) == (Client, "trtstream")
    with pytest.raises(TrtstreamError, match="has no model 'other'; see --model-name"):
        connect(service.grpc_url, "other")
    with pytest.raises(TrtstreamError, match="no Triton gRPC service answers"):
        connect("127.0.0.1:1")


def test_ids_of_a_session_are_sent_again(client: TensorrtLlmClient, greedy) -> None:
    turn = {"session_id": "s", "max_tokens": 20, **GREEDY}
    first = client.answer(input_ids=[1, 2, 3], **turn)
    assert list(first.token_ids) == greedy([1, 2, 3], 20)
    second = client.answer(input_ids=[4], **turn)
    assert list(second.token_ids) == greedy([1, 2, 3, *first.token_ids, 4], 20)
    third = client.answer(input_ids=[5] * 30, **turn)
    everything = [1, 2, 3, *first.token_ids, 4, *second.token_ids, *[5] * 30]
    assert list(third.token_ids) == greedy(everything[-WINDOW:], 20)
    assert third.session_tokens == 20 + 20 + 19
    client.answer(session_id="s", session_end=True)
    assert list(client.answer(input_ids=[4], **turn).token_ids) == greedy([4], 20)
    with pytest.raises(TrtstreamError, match=f"input_ids has {WINDOW + 1} tokens; the engine's max_input_len is"):
        client.answer(input_ids=[1] * (WINDOW + 1), **turn)


def test_a_chat_is_sent_again_as_far_as_it_fits(client: TensorrtLlmClient, greedy) -> None:
    turn = {"chat": True, "session_id": "s", "max_tokens": 3, **GREEDY}
    first = client.answer(text_input="ab", system="Be.", **turn)
    prompt = "<system>Be.\n<user>ab\n<assistant>"
    assert list(first.token_ids) == greedy(list(prompt.encode()), 3)
    second = client.answer(text_input="cd", **turn)
    expected = f"<system>Be.\n<user>ab\n<assistant>{first.text}\n<user>cd\n<assistant>"
    if len(expected.encode()) > WINDOW:
        expected = "<system>Be.\n<user>cd\n<assistant>"
    assert list(second.token_ids) == greedy(list(expected.encode()), 3)
    for number in range(4):
        answer = client.answer(text_input=f"{number}" * 12, **turn)
    prompt = f"<system>Be.\n<user>{'3' * 12}\n<assistant>"
    assert list(answer.token_ids) == greedy(list(prompt.encode()), 3)
    with pytest.raises(TrtstreamError, match="max_input_len"):
        client.answer(text_input="x" * WINDOW, **turn)
    after = client.answer(text_input="3" * 12, **turn)
    assert after.token_ids == answer.token_ids  # the refused turn left nothing


def test_inputs_that_this_service_lacks(client: TensorrtLlmClient) -> None:
    with pytest.raises(TrtstreamError, match="text_input and input_ids were both given"):
        client.answer(text_input="x", input_ids=[1])
    with pytest.raises(TrtstreamError, match="takes chat turns or input_ids"):
        client.answer(text_input="x", session_id="s")
    with pytest.raises(TrtstreamError, match="return_log_probs cannot be asked"):
        client.answer(text_input="x", return_log_probs=True)


def test_smoke(service: Server) -> None:
    done = run_trtstream("smoke", "--url", service.grpc_url, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = {check["name"]: check["passed"] for check in report["checks"]}
    assert report["model_name"] == "ensemble"
    not_applicable = {"session beyond W", "stop words", "session_tokens", "turn ids", "session_end"}
    assert {name for name, verdict in passed.items() if verdict is None} == not_applicable
    assert {verdict for name, verdict in passed.items() if name not in not_applicable} == {True}
    plain = run_trtstream("smoke", "--url", service.grpc_url, "--model-name", "tensorrt_llm_bls")
    assert plain.returncode == 0, plain.stdout
    assert "n/a    session_end         the tensorrtllm backend keeps no sessions\n" in plain.stdout


def test_bench(service: Server, tmp_path: Path) -> None:
    options = ("--concurrency", "2", "--requests", "2", "--input-tokens", "8", "--output-tokens", "4", "--turns", "2")
    done = run_trtstream("bench", "--url", service.grpc_url, *options, "--json", tmp_path / "bench.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(RESENDS) == 1
    assert "the prompts are token ids: tensorrt_llm takes them" in done.stderr
    level = json.loads((tmp_path / "bench.json").read_text())["levels"][0]
    assert (level["requests"], level["errors"]) == (4, 0)


def test_chat(service: Server) -> None:
    done = run_trtstream("chat", "--url", service.grpc_url, stdin="a\n")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(RESENDS) == 1
    assert "come back to it" not in done.stderr
    resumed = run_trtstream("chat", "--url", service.grpc_url, "--session", "x", stdin="a\n")
    assert resumed.returncode == 1
    assert "leave it out" in resumed.stderr
