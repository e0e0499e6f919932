"""Converted checkpoints: all of the source in them, each tensor once, and transformers' logits out of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.build.tensorrt_llm_reader import Weights, logits, read_ranks
from tests.checkpoints import VARIANTS, write_checkpoint
from tests.command_line import run_in_process, run_trtstream
from tests.runtime.test_parity import transformers_logits
from trtstream.build.checkpoint import Checkpoint, open_checkpoint
from trtstream.build.tensorrt_llm.convert import convert_checkpoint
from trtstream.build.tensorrt_llm.releases import DEFAULT, RELEASES, find_release
from trtstream.engine_dir import read_engine
from trtstream.errors import TrtstreamError
from trtstream.runtime.loading import load_engine
from trtstream.settings import BuildConfig, TensorrtLlmOptions

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19, 71]
TOLERANCE = 1e-4  # of the logits' standard deviation
REFUSED = ("llama-rope-yarn", "qwen2", "qwen3", "phi3", "gpt-neox", "mpt-7b")
TAKEN = [variant for variant in VARIANTS if variant not in REFUSED]
# Two layers a stage; a vocabulary that four shards have to pad; heads that they can share.
SIZES = {"num_hidden_layers": 4, "vocab_size": 126}
SMALL_FALCON = {"hidden_size": 64, "num_attention_heads": 8}
WITHOUT_SINKS = BuildConfig(dtype="float32", sink_token_length=0, max_sink_token_length=0)


@dataclass(frozen=True)
class Source:
    checkpoint: Checkpoint
    logits: torch.Tensor


Sources = Callable[[str], Source]


def divided(build: BuildConfig, tp_size: int = 1, pp_size: int = 1) -> BuildConfig:
    """``build`` for several GPUs."""
    return replace(build, tensorrt_llm=TensorrtLlmOptions(tp_size, pp_size))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A variant's checkpoint, and its logits by transformers."""

    @cache
    def make(variant: str) -> Source:
        sizes: dict[str, Any] = {**SIZES, **(SMALL_FALCON if variant == "falcon-7b" else {})}
        if variant.startswith("falcon"):
            sizes["activation"] = "gelu_pytorch_tanh"  # the only gelu that TensorRT-LLM has
        folder = write_checkpoint(tmp_path_factory.mktemp(variant), variant, **sizes)
        with pytest.MonkeyPatch.context() as monkeypatch:
            return Source(open_checkpoint(folder), transformers_logits(folder, TOKENS, monkeypatch))

    return make


def convert(checkpoint: Checkpoint, folder: Path, build: BuildConfig, version: str = DEFAULT.name) -> Path:
    convert_checkpoint(checkpoint, build, find_release(version), folder / "checkpoint", lambda done, total: None)
    return folder / "checkpoint"


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < TOLERANCE * expected.std()


def reassemble(config: dict[str, Any], ranks: list[Weights]) -> dict[str, torch.Tensor]:
    """The canonical tensors back from the rank files, which are emptied on the way."""
    tp_size, pp_size = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
    layers, kv_heads = config["num_hidden_layers"] // pp_size, config["num_key_value_heads"]
    first, last = ranks[:tp_size], ranks[-tp_size:]

    def take(stage: list[Weights], name: str) -> list[torch.Tensor]:
        return [rank.pop(name) for rank in stage]

    def same(parts: list[torch.Tensor]) -> torch.Tensor:
        assert all(torch.equal(part, parts[0]) for part in parts)
        return parts[0]

    def heads(parts: list[torch.Tensor]) -> torch.Tensor:
        split = [part.unflatten(0, (-1, config["head_size"])) for part in parts]
        own_kv = max(kv_heads // tp_size, 1)
        q, k, v = ([part.split((len(part) - 2 * own_kv, own_kv, own_kv))[i] for part in split] for i in range(3))
        copies = max(tp_size // kv_heads, 1)

        def shared(parts: list[torch.Tensor]) -> list[torch.Tensor]:
            return [same(parts[i : i + copies]) for i in range(0, tp_size, copies)]

        return torch.cat([*q, *shared(k), *shared(v)]).flatten(0, 1)

    def bias_after_sum(parts: list[torch.Tensor]) -> torch.Tensor:
        if config.get("parallel_attention"):
            assert not any(part.any() for part in parts[1:])
            return parts[0]
        return same(parts)

    found = {"embedding.weight": same(take(first, "transformer.vocab_embedding.weight"))}
    for i in range(config["num_hidden_layers"]):
        stage = ranks[i // layers * tp_size :][:tp_size]
        theirs, ours = f"transformer.layers.{i % layers}.", f"layers.{i}."
        names = sorted(name.removeprefix(theirs) for name in stage[0] if name.startswith(theirs))
        parts = {name: take(stage, theirs + name) for name in names}
        for kind in ("weight", "bias"):
            if f"mlp.gate.{kind}" in parts:
                fused = torch.cat(parts.pop(f"mlp.fc.{kind}") + parts.pop(f"mlp.gate.{kind}"))
                found[f"{ours}gate_up.{kind}"] = fused
        for name, pieces in parts.items():
            module, kind = name.rsplit(".", 1)
            summed = bias_after_sum if kind == "bias" else lambda parts: torch.cat(parts, dim=1)
            canonical, join = {
                "input_layernorm": ("attention_norm", same),
                "post_layernorm": ("mlp_norm", same),
                "mlp_layernorm": ("mlp_norm", same),
                "attention.qkv": ("qkv", heads),
                "attention.dense": ("attention_output", summed),
                "mlp.fc": ("up", torch.cat),
                "mlp.proj": ("down", summed),
            }[module]
            found[f"{ours}{canonical}.{kind}"] = join(pieces)
    for kind in ("weight", "bias"):
        if f"transformer.ln_f.{kind}" in last[0]:
            found[f"norm.{kind}"] = same(take(last, f"transformer.ln_f.{kind}"))
    padded = torch.cat(take(last, "lm_head.weight"))
    assert not padded[config["vocab_size"] :].any()
    found["lm_head.weight"] = padded[: config["vocab_size"]]
    return found


@pytest.mark.quick("*-2-2")
@pytest.mark.parametrize("pp_size", [1, 2])
@pytest.mark.parametrize("tp_size", [1, 2, 4])
@pytest.mark.parametrize("variant", TAKEN)
def test_nothing_is_lost_and_the_logits_are_transformers(
    source: Sources, variant: str, tp_size: int, pp_size: int, tmp_path: Path
) -> None:
    checkpoint, expected = source(variant).checkpoint, source(variant).logits
    build = divided(WITHOUT_SINKS, tp_size, pp_size)
    config, ranks = read_ranks(convert(checkpoint, tmp_path, build))
    assert len(ranks) == tp_size * pp_size
    assert_equal(logits(config, ranks, TOKENS), expected)

    found = reassemble(config, ranks)
    assert not any(ranks), "tensors that no source tensor went into"
    if checkpoint.model.tie_word_embeddings:
        assert torch.equal(found.pop("lm_head.weight"), found["embedding.weight"])
    assert sorted(found) == sorted(checkpoint.tensor_names())
    for name, tensor in found.items():
        assert torch.equal(tensor, checkpoint.tensor(name)), name


def swap_gate_and_up(ranks: list[Weights]) -> None:
    for rank in ranks:
        for name in [name for name in rank if ".mlp.fc." in name]:
            other = name.replace("fc", "gate")
            rank[name], rank[other] = rank[other], rank[name]


def exchange_kv_heads(ranks: list[Weights]) -> None:
    """The ranks' key heads (16 rows each, between 32 of queries and 16 of values) change places."""
    name = "transformer.layers.0.attention.qkv.weight"
    first, second = ranks[0][name], ranks[1][name]
    first[32:48], second[32:48] = second[32:48].clone(), first[32:48].clone()


def bias_on_every_rank(ranks: list[Weights]) -> None:
    name = "transformer.layers.0.attention.dense.bias"
    ranks[1][name] = ranks[0][name]


@pytest.mark.parametrize(
    ("variant", "mutate"),
    [
        ("llama-gqa", swap_gate_and_up),
        ("llama-gqa", exchange_kv_heads),
        ("falcon-mha-parallel", bias_on_every_rank),
    ],
)
def test_the_reader_sees_mistakes(source: Sources, variant: str, mutate: Any, tmp_path: Path) -> None:
    config, ranks = read_ranks(convert(source(variant).checkpoint, tmp_path, divided(WITHOUT_SINKS, tp_size=2)))
    assert_equal(logits(config, ranks, TOKENS), source(variant).logits)
    mutate(ranks)
    with pytest.raises(AssertionError):
        assert_equal(logits(config, ranks, TOKENS), source(variant).logits)


@pytest.mark.parametrize(("dtype", "quantization"), [("float16", "none"), ("bfloat16", "none"), ("bfloat16", "int8")])
def test_number_formats(source: Sources, dtype: str, quantization: str, tmp_path: Path) -> None:
    """int8 weights stay in floating point here: the loader quantizes them, for the GPU that it runs on."""
    checkpoint = source("llama-gqa").checkpoint
    build = replace(WITHOUT_SINKS, dtype=dtype, quantization=quantization, tensorrt_llm=TensorrtLlmOptions(tp_size=2))
    config, ranks = read_ranks(convert(checkpoint, tmp_path, build))
    assert config["dtype"] == dtype
    assert config["quantization"]["quant_algo"] == {"none": None, "int8": "W8A16"}[quantization]
    for name, tensor in reassemble(config, ranks).items():
        assert torch.equal(tensor, checkpoint.tensor(name).to(getattr(torch, dtype))), name


SINKS = replace(WITHOUT_SINKS, sink_token_length=4, max_sink_token_length=4)
ROPE_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
ROPE_BASE = {"rope_type": "default", "rope_theta": 5e5}
REFUSALS: dict[str, tuple[str, BuildConfig, str, str]] = {
    "yarn": ("llama-rope-yarn", SINKS, "1.0", "TensorRT-LLM 1.0 has no yarn RoPE scaling for Llama, only default, dyn"),
    "llama3 before 0.12": (
        "llama-rope-llama3",
        WITHOUT_SINKS,
        "0.11.0",
        "TensorRT-LLM 0.10 has no llama3 RoPE scaling",
    ),
    "llama3 with sinks": ("llama-rope-llama3", SINKS, "0.17", "shiftKCache.* give --sink-token-length 0 for a plain"),
    "Falcon with sinks": ("falcon-7b", SINKS, "1.0", "StreamingLLM is for Llama only: give --sink-token-length 0"),
    "layers": (
        "llama-gqa",
        divided(SINKS, pp_size=3),
        "1.0",
        "--pp-size 3 does not divide the 4 layers; choose",
    ),
    "heads": (
        "llama-gqa",
        divided(SINKS, tp_size=3),
        "1.0",
        "--tp-size 3 does not divide the 4 attention heads",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(source: Sources, name: str, tmp_path: Path) -> None:
    variant, build, version, message = REFUSALS[name]
    with pytest.raises(TrtstreamError, match=message) as caught:
        convert(source(variant).checkpoint, tmp_path, build, version)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 6},
            "--tp-size 4 and 6 KV heads: one must",
        ),
        ({"intermediate_size": 98}, "--tp-size 4 does not divide the 98 MLP columns"),
    ],
)
def test_sizes_that_do_not_divide(overrides: dict[str, int], message: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "source", "llama-gqa", **overrides))
    with pytest.raises(TrtstreamError, match=message):
        convert(checkpoint, tmp_path, divided(SINKS, tp_size=4))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rope_parameters": ROPE_LINEAR}, "Falcon has no RoPE scaling, and the checkpoint has linear"),
        (
            {"rope_parameters": ROPE_BASE},
            "TensorRT-LLM 0.12's Falcon has a fixed RoPE base of 10000, and the .* 500000",
        ),
        ({"layer_norm_epsilon": 1e-6}, "a fixed layer_norm_epsilon of 1e-05, and the checkpoint's is 1e-06"),
    ],
)
def test_falcons_that_upstream_has_no_setting_for(overrides: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "source", "falcon-7b", **overrides))
    with pytest.raises(TrtstreamError, match=message):
        convert(checkpoint, tmp_path, WITHOUT_SINKS, "0.12")


def test_falcon_with_another_rope_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Falcon2-11B's, for one."""
    folder = write_checkpoint(
        tmp_path / "source", "falcon-11b", rope_parameters=ROPE_BASE, activation="gelu_pytorch_tanh"
    )
    config, ranks = read_ranks(convert(open_checkpoint(folder), tmp_path, WITHOUT_SINKS, "0.17"))
    assert_equal(logits(config, ranks, TOKENS), transformers_logits(folder, TOKENS, monkeypatch))


@pytest.mark.parametrize(
    ("version", "release"),
    [("0.10", "0.10"), ("v0.11.0", "0.10"), ("0.12.0", "0.12"), ("0.16.0", "0.12"), ("0.17.0.post1", "0.17"),
     ("0.21.0", "0.17"), ("1.0.0rc6", "1.0"), ("1.0", "1.0")],
)  # fmt: skip
def test_releases(version: str, release: str) -> None:
    assert find_release(version).name == release
    assert list(RELEASES) == sorted(RELEASES, key=lambda known: known.version)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("0.9.0", "0.9.0 is too old.* use a release from 0.10 to 1.0"),
        ("1.1.0rc0", "no attention sinks .*; use --target tensorrt or cuda, or a release from 0.10 to 1.0"),
        ("1.3", "has no attention sinks"),
        ("newest", "'newest' is not a version; expected one such as 0.17"),
    ],
)
def test_releases_that_do_not_serve(version: str, message: str) -> None:
    with pytest.raises(TrtstreamError, match=message):
        find_release(version)


@pytest.mark.process
def test_build_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no trtllm-build
    folder, engine = write_checkpoint(tmp_path / "source", "llama-gqa", **SIZES), tmp_path / "engine"
    command = ("build", folder, "--output", engine, "--max-attention-window", 64)
    refused = run_in_process(*command, "--target", "cpu", "--tp-size", 2)
    assert refused.returncode == 1
    assert "are for the tensorrt-llm target only" in refused.stderr

    options = ("--target", "tensorrt-llm", "--tp-size", 2, "--pp-size", 2, "--tensorrt-llm-version", "0.17")
    done = run_trtstream(*command, *options)
    assert done.returncode == 0, done.stderr
    config = read_engine(engine)
    assert (config.target, config.toolchain["tensorrt_llm"]) == ("tensorrt-llm", "0.17")
    ranks = {f"checkpoint/rank{rank}.safetensors" for rank in range(4)}
    assert {"checkpoint/config.json", "build.sh", *ranks} <= set(config.files)
    with pytest.raises(
        TrtstreamError, match="cannot run here: Triton's tensorrtllm backend alone runs it: `trtstream package` it"
    ) as caught:
        load_engine(engine)
    assert "\n" not in str(caught.value)

    inspected = json.loads(run_in_process("inspect", engine, "--json").stdout)
    assert inspected["memory"]["weights_bytes"] == sum((engine / name).stat().st_size for name in ranks)
    assert "tensorrt_llm 0.17" in run_in_process("inspect", engine).stdout


# The peak in /proc is this process's own; getrusage's is not below what its parent had when it forked.
SMOLLM2 = """
from pathlib import Path
from trtstream.cli import cli
cli(standalone_mode=False)
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_smollm2_in_little_memory(smollm2_gguf: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SMOLLM2, "build", str(smollm2_gguf), "--target", "tensorrt-llm"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "engine")], check=True, stdout=subprocess.PIPE, text=True
    )
    kilobytes = int(done.stdout.splitlines()[-1])
    assert kilobytes * 1024 < 1.5e9
    assert (tmp_path / "engine" / "tokenizer" / "tokenizer.json").is_file()
