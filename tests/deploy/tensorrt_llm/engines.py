"""Engines and services of the tensorrt-llm target on a machine that can run neither."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from tests.checkpoints import write_checkpoint
from tests.deploy.tokenizer import write_byte_tokenizer
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.cpu import build_cpu_engine
from trtstream.build.tensorrt_llm.target import build_tensorrt_llm_engine
from trtstream.deploy.serving.package import package_engine
from trtstream.settings import BuildConfig, TensorrtLlmOptions

WINDOW = 64
CPU_ENGINE_BEHIND_UPSTREAMS_NAMES = '''
"""In the place of TensorRT-LLM, which needs a GPU: an engine of the cpu target with the same tensors."""

import numpy as np
import triton_python_backend_utils as pb_utils

import trtstream
from trtstream.runtime.requests import TurnRequest


class TritonPythonModel:
    def initialize(self, args):
        self._llm = trtstream.load({engine!r})
        self._turns = {{}}

    def execute(self, requests):
        for request in requests:
            inputs = {{tensor.name(): tensor.as_numpy().reshape(-1).tolist() for tensor in request.inputs()}}
            sender, key = request.get_response_sender(), request.request_id()
            if inputs.get("stop", [False])[0]:
                if key in self._turns:
                    self._turns[key].cancel()
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            end_id = inputs.get("end_id", [-1])[0]
            turn = TurnRequest(
                input_ids=tuple(inputs["input_ids"][: inputs["input_lengths"][0]]),
                max_tokens=inputs["request_output_len"][0],
                end_id=None if end_id < 0 else end_id,
                ignore_eos=end_id < 0,
                return_log_probs=True,
            )
            collected = [] if not inputs.get("streaming", [False])[0] else None
            answer = Answer(sender, collected)
            answer.turn = self._turns[key] = self._llm.scheduler.submit(turn, answer)


class Answer:
    def __init__(self, sender, collected):
        self._sender, self._collected, self.turn = sender, collected, None

    def __call__(self, output):
        if isinstance(output, Exception):
            error = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(output)))
            self._sender.send(error, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return
        if not output.finish_reason and self._sender.is_cancelled():
            self.turn.cancel()
        tokens, log_probs = output.token_ids, output.log_probs
        if self._collected is not None:
            self._collected.append(output)
            tokens = [token for output in self._collected for token in output.token_ids]
            log_probs = [value for output in self._collected for value in output.log_probs]
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if output.finish_reason else 0
        if self._collected is None or flags:
            self._sender.send(
                pb_utils.InferenceResponse(
                    [
                        pb_utils.Tensor("output_ids", np.array([[tokens]], dtype=np.int32)),
                        pb_utils.Tensor("sequence_length", np.array([[len(tokens)]], dtype=np.int32)),
                        pb_utils.Tensor("cum_log_probs", np.array([[sum(log_probs)]], dtype=np.float32)),
                        pb_utils.Tensor("output_log_probs", np.array([[log_probs]], dtype=np.float32)),
                    ]
                ),
                flags=flags,
            )
'''


def write_text_checkpoint(folder: Path) -> Path:
    """A random Llama with one token for each byte: most of its answers are not UTF-8.

    Its answers end at 2 and 5, and its tokenizer puts 2 behind each text.
    """
    checkpoint = write_checkpoint(folder, "llama-gqa", vocab_size=256)
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    write_byte_tokenizer(checkpoint, vocab_size=256)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    eos = tokenizer.id_to_token(2)
    tokenizer.post_processor = TemplateProcessing(f"$A {eos}", special_tokens=[(eos, 2)])
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    return checkpoint


def write_engine(folder: Path, checkpoint: Path, version: str, *, world_size: int = 1, built: bool = True) -> Path:
    """An engine directory of the tensorrt-llm target. Empty files and a config are in the place of trtllm-build's."""
    build = BuildConfig(
        max_batch_size=4,
        max_attention_window=WINDOW,
        dtype="bfloat16",
        tensorrt_llm=TensorrtLlmOptions(tp_size=world_size, version=version),
    )
    build_tensorrt_llm_engine(open_checkpoint(checkpoint), build, folder, lambda done, total: None)
    if built:
        (folder / "engine").mkdir()
        for rank in range(world_size):
            (folder / "engine" / f"rank{rank}.engine").touch()
        config = {
            "version": version,
            "pretrained_config": {"mapping": {"world_size": world_size}},
            "build_config": {"max_input_len": WINDOW},
        }
        (folder / "engine" / "config.json").write_text(json.dumps(config))
    return folder


def write_stand_in_repository(folder: Path) -> tuple[Path, Path]:
    """(The packaged repository with a cpu engine in the place of TensorRT-LLM's, that cpu engine)."""
    checkpoint = write_text_checkpoint(folder / "checkpoint")
    build = BuildConfig(max_batch_size=4, max_num_tokens=32, max_attention_window=WINDOW)
    build_cpu_engine(open_checkpoint(checkpoint), build, folder / "cpu_engine", lambda done, total: None)
    repository = package_engine(write_engine(folder / "engine", checkpoint, "1.0.0"), folder / "repository")
    model = repository / "tensorrt_llm"
    for built in (model / "1" / "engine").iterdir():
        built.unlink()
    (model / "1" / "engine").rmdir()
    config = (model / "config.pbtxt").read_text()
    assert config.count('backend: "tensorrtllm"') == 1
    (model / "config.pbtxt").write_text(config.replace('backend: "tensorrtllm"', 'backend: "python"'))
    (model / "1" / "model.py").write_text(CPU_ENGINE_BEHIND_UPSTREAMS_NAMES.format(engine=str(folder / "cpu_engine")))
    return repository, folder / "cpu_engine"
