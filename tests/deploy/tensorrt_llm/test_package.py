"""The model repository for Triton's tensorrtllm backend: its contents, its refusals, and how it is launched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from tests.deploy.server import serve_process
from tests.deploy.tensorrt_llm.engines import WINDOW, write_engine, write_text_checkpoint
from trtstream.deploy.client.tensorrt_llm.client import TensorrtLlmClient
from trtstream.deploy.client.triton import ServedModel
from trtstream.deploy.serving.package import package_engine
from trtstream.errors import TrtstreamError

UPSTREAM = Path(__file__).parent / "backend"
MODELS = ["ensemble", "postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls"]
RELEASES = ["0.10", "0.12", "0.17", "1.0"]
ADDED = {"output_ids", "sequence_length"}  # by our ensemble and BLS model to upstream's outputs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def repositories(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each release the repository of a packaged engine."""
    folder = tmp_path_factory.mktemp("repositories")
    return {
        release: package_engine(write_engine(folder / f"engine-{release}", checkpoint, release), folder / release)
        for release in RELEASES
    }


def read_config(repository: Path, model: str) -> ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), ModelConfig())


def tensors(kind) -> dict[str, list[object]]:
    return {t.name: [DataType.Name(t.data_type).removeprefix("TYPE_"), *t.dims] for t in kind}


def parameters(config: ModelConfig) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("model", MODELS)
def test_tensors_are_the_backends_own(repositories: dict[str, Path], release: str, model: str) -> None:
    """Every tensor has upstream's name, datatype and dimensions, and none is missing that upstream requires."""
    config, upstream = read_config(repositories[release], model), json.loads((UPSTREAM / f"{release}.json").read_text())
    for kind, found in (("inputs", tensors(config.input)), ("outputs", tensors(config.output))):
        known = upstream[model][kind]
        for name, tensor in found.items():
            if kind == "outputs" and name in ADDED and model in ("ensemble", "tensorrt_llm_bls"):
                continue
            if release == "0.10" and known[name] == [tensor[0], -1]:
                continue  # there a scalar of a batch was [-1], which takes a 1 too
            assert tensor == known[name], name
    assert config.name == model
    assert config.max_batch_size == 4


def test_every_step_is_connected(repositories: dict[str, Path]) -> None:
    """The ensemble's maps name tensors of the models they are for, and feed all that those require."""
    for repository in repositories.values():
        ensemble = read_config(repository, "ensemble")
        known = {tensor.name for tensor in ensemble.input}
        for step in ensemble.ensemble_scheduling.step:
            config = read_config(repository, step.model_name)
            assert set(step.input_map) <= {tensor.name for tensor in config.input}
            assert set(step.output_map) <= {tensor.name for tensor in config.output}
            assert {tensor.name for tensor in config.input if not tensor.optional} <= set(step.input_map)
            assert set(step.input_map.values()) <= known
            known |= set(step.output_map.values())
        assert {tensor.name for tensor in ensemble.output} <= known


@pytest.mark.parametrize("release", RELEASES)
def test_the_engines_model(repositories: dict[str, Path], release: str) -> None:
    config = read_config(repositories[release], "tensorrt_llm")
    assert config.backend == "tensorrtllm"
    assert config.model_transaction_policy.decoupled
    assert parameters(config) == {
        "gpt_model_path": "tensorrt_llm/1/engine",
        "gpt_model_type": "inflight_fused_batching",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "max_attention_window_size": str(WINDOW),
        "sink_token_length": "4",
        "enable_kv_cache_reuse": "false",
        "enable_chunked_context": "false",
        "kv_cache_free_gpu_mem_fraction": "0.9",
        "max_beam_width": "1",
        "exclude_input_in_output": "true",
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "executor_worker_path": "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
    }
    upstream = json.loads((UPSTREAM / f"{release}.json").read_text())
    assert set(parameters(config)) <= set(upstream["tensorrt_llm"]["parameters"])


def test_the_repository_holds_all_it_needs(repositories: dict[str, Path]) -> None:
    repository = repositories["1.0"]
    assert sorted(path.name for path in repository.iterdir()) == MODELS
    assert (repository / "tensorrt_llm" / "1" / "engine" / "rank0.engine").is_file()
    assert all((repository / model / "1").is_dir() for model in MODELS)
    assert not list(repository.rglob("__pycache__"))
    found = parameters(read_config(repository, "ensemble"))
    assert (found["vocab_size"], found["max_input_len"], found["end_id"]) == ("256", str(WINDOW), "2")
    assert "{{ message.content }}" in found["chat_template"]


def test_merges_are_written_as_every_release_reads_them(checkpoint: Path, tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", checkpoint, "0.10")
    tokenizer = json.loads((engine / "tokenizer" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["th"] = 256
    tokenizer["model"]["merges"] = [["t", "h"]]
    (engine / "tokenizer" / "tokenizer.json").unlink()
    (engine / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
    repository = package_engine(engine, tmp_path / "repository")
    packaged = repository / "preprocessing" / "1" / "tokenizer" / "tokenizer.json"
    assert json.loads(packaged.read_text())["model"]["merges"] == ["t h"]

    from tokenizers import Tokenizer

    assert Tokenizer.from_file(str(packaged)).encode("the", add_special_tokens=False).ids == [256, ord("e")]


def test_refusals(checkpoint: Path, repositories: dict[str, Path], tmp_path: Path) -> None:
    unbuilt = write_engine(tmp_path / "unbuilt", checkpoint, "1.0", built=False)
    with pytest.raises(TrtstreamError, match=r"holds a checkpoint and no engine yet: run .*build\.sh"):
        package_engine(unbuilt, tmp_path / "repository")
    half = write_engine(tmp_path / "half", checkpoint, "1.0", world_size=2)
    (half / "engine" / "rank1.engine").unlink()
    with pytest.raises(TrtstreamError, match="no engine yet"):
        package_engine(half, tmp_path / "repository")
    engine = write_engine(tmp_path / "engine", checkpoint, "1.0")
    with pytest.raises(TrtstreamError, match="have fixed names: leave it out"):
        package_engine(engine, tmp_path / "repository", "other")
    with pytest.raises(TrtstreamError, match="exists already"):
        package_engine(engine, repositories["1.0"])
    (engine / "engine" / "config.json").write_text("{}")
    with pytest.raises(TrtstreamError, match="lacks 'version'; build the engine with trtllm-build"):
        package_engine(engine, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def serve_error(source: Path, log: Path, **environment: str) -> str:
    with serve_process(source, log, **environment) as process:
        assert process.wait(60) == 1
    return log.read_text()


def test_serving_where_the_backend_is_not(checkpoint: Path, repositories: dict[str, Path], tmp_path: Path) -> None:
    error = serve_error(repositories["0.17"], tmp_path / "log")
    assert error.splitlines()[-1].startswith("trtstream: Triton's tensorrtllm backend is not at ")
    assert "serve in the container with TensorRT-LLM 0.17 that the engine's build.sh names" in error
    engine = write_engine(tmp_path / "engine", checkpoint, "1.0")
    assert "`trtstream package` it, then serve the repository" in serve_error(engine, tmp_path / "log")


@pytest.mark.parametrize("world_size", [1, 2])
def test_how_triton_is_launched(checkpoint: Path, tmp_path: Path, world_size: int) -> None:
    """tritonserver and mpirun are scripts here that write down how they were called, and exit."""
    engine = write_engine(tmp_path / "engine", checkpoint, "1.0", world_size=world_size)
    repository = package_engine(engine, tmp_path / "repository")
    library = tmp_path / "opt" / "backends" / "tensorrtllm" / "libtriton_tensorrtllm.so"
    library.parent.mkdir(parents=True)
    library.touch()
    binaries = tmp_path / "opt" / "bin"
    binaries.mkdir()
    path = os.pathsep.join([str(binaries), *(folder for folder in ("/usr/bin", "/bin"))])
    for name in ("tritonserver", "mpirun"):
        script = binaries / name
        script.write_text(
            f'#!/bin/sh\npwd > {tmp_path}/{name}.called\nprintf "%s\\n" "$@" >> {tmp_path}/{name}.called\n'
        )
        script.chmod(0o755)
    if world_size == 2:
        (binaries / "mpirun").rename(tmp_path / "mpirun")
        if shutil.which("mpirun", path=path) is None:
            assert "2 GPUs and mpirun, which starts a process for each, is not on PATH" in serve_error(
                repository, tmp_path / "log", PATH=path
            )
        (tmp_path / "mpirun").rename(binaries / "mpirun")
    assert "tritonserver exited with code 0" in serve_error(repository, tmp_path / "log", PATH=path)
    folder, *arguments = (
        (tmp_path / f"{'mpirun' if world_size == 2 else 'tritonserver'}.called").read_text().splitlines()
    )
    assert Path(folder) == repository
    assert f"--model-repository={repository}" in arguments
    assert "--exit-timeout-secs=30" in arguments
    if world_size == 2:
        split = arguments.index(":")
        first, second = arguments[:split], arguments[split + 1 :]
        assert first[:4] == ["--allow-run-as-root", "-n", "1", str(binaries / "tritonserver")]
        assert second[:3] == ["-n", "1", str(binaries / "tritonserver")]
        assert second[-2:] == ["--model-control-mode=explicit", "--load-model=tensorrt_llm"]
        regions = [next(a for a in rank if "shm-region-prefix-name" in a) for rank in (first, second)]
        assert regions[0] != regions[1]


def test_a_template_that_does_not_end_is_stopped_at_the_client() -> None:
    loop = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    with TensorrtLlmClient("127.0.0.1:1") as client:
        client.served = ServedModel({}, {}, True, {"chat_template": loop})
        with pytest.raises(
            TrtstreamError, match=r"^the engine's chat template is stopped: it computes for more than 2 s"
        ):
            client.answer(text_input="Hi", chat=True)
