"""The cuda target's engine directory, built without a GPU: dtypes, quantizations, and refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from tests.checkpoints import write_checkpoint
from tests.command_line import run_in_process, run_trtstream
from tests.engines import build_variant, load_on_cpu, reference_logits
from trtstream.build.checkpoint import Checkpoint, open_checkpoint
from trtstream.build.cuda import build_cuda_engine
from trtstream.engine_dir import engine_memory, read_engine
from trtstream.errors import TrtstreamError
from trtstream.plugins.cuda_device import why_no_cuda
from trtstream.plugins.quantized_weight import QuantizedWeight, dequantize
from trtstream.samples.gpl import GPL
from trtstream.settings import BuildConfig
from trtstream.targets import KV_DTYPES, TARGETS, best_target

SIZES = {"max_attention_window": 24, "max_batch_size": 2}


def stored(engine: Path) -> dict[str, torch.Tensor]:
    with safe_open(engine / "rank0.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_an_engine_is_its_weights(dtype: str, tmp_path: Path) -> None:
    checkpoint, engine = build_variant(tmp_path, "llama-bias", "cuda", **SIZES, dtype=dtype)
    config = read_engine(engine)
    assert (config.target, set(config.files)) == ("cuda", {"rank0.safetensors"})
    tensors = stored(engine)
    assert set(tensors) == set(checkpoint.tensor_names())
    for name, tensor in tensors.items():
        assert torch.equal(tensor, checkpoint.tensor(name).to(getattr(torch, dtype)))
    memory = engine_memory(engine, config)
    values = 2 * 3 * 2 * 16 * 24  # keys and values, layers, KV heads, head_dim, window
    assert memory.kv_cache_per_session == values * tensors["norm.weight"].itemsize
    assert memory.weights == (engine / "rank0.safetensors").stat().st_size


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_quantized_kv_cache_changes_no_weight_and_takes_a_byte_a_number(kv_dtype: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-gqa")
    arguments = ["build", checkpoint, "--target", "cuda", "--max-attention-window", 24]
    for name, option in (("engine", []), ("quantized", ["--kv-dtype", kv_dtype])):
        done = run_in_process(*arguments, "--output", tmp_path / name, *option)
        assert done.returncode == 0, done.stderr
    engine = tmp_path / "quantized"
    config = read_engine(engine)
    assert config.build_config.kv_dtype == kv_dtype
    assert config.files == read_engine(tmp_path / "engine").files
    per_session = engine_memory(engine, config).kv_cache_per_session
    assert per_session == 2 * 3 * 2 * 24 * (16 + 4)  # keys and values, layers, KV heads, window, head_dim and a scale
    shown = run_in_process("inspect", engine).stdout
    assert f"KV cache {kv_dtype}" in shown
    assert f"{per_session / 1e6:.1f} MB a session" in shown
    assert f"{per_session / 1e6:.1f} MB a session" in done.stdout


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if not target.kv_dtypes])
def test_other_targets_refuse_a_quantized_kv_cache(target: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-gqa")
    refused = run_in_process("build", checkpoint, "--target", target, "--dry-run", "--kv-dtype", "int8")
    assert refused.returncode == 1
    (line,) = refused.stderr.strip().splitlines()
    assert f"kv_dtype is 'int8'; the {target} target keeps its KV cache in the engine's dtype" in line


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_quantized_engine_computes_with_its_projections_rounded_and_nothing_else(
    quantization: str, tmp_path: Path
) -> None:
    checkpoint, engine = build_variant(
        tmp_path, "falcon-mha-parallel", "cuda", **SIZES, dtype="float32", quantization=quantization
    )
    tensors = stored(engine)
    rounded = {name.removesuffix(".scales") for name in tensors if name.endswith(".scales")}
    assert rounded == {f"layers.{i}.{name}" for i in range(3) for name in ("qkv", "attention_output", "up", "down")}

    def tensor(name: str) -> torch.Tensor:
        layer, _, kind = name.rpartition(".")
        if kind != "weight" or layer not in rounded:
            assert torch.equal(tensors[name], checkpoint.tensor(name))
            return tensors[name]
        weight = QuantizedWeight(tensors[name], tensors[f"{layer}.scales"], tensors.get(f"{layer}.zeros"))
        return dequantize(weight, torch.float32)

    fed = torch.randint(128, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    expected = reference_logits(RoundedCheckpoint(checkpoint, tensor), fed, 4, 20)
    loaded = load_on_cpu(engine)
    found = torch.cat([loaded.decode([0], [token]) for token in fed])
    assert (found - expected).abs().max() < 1e-4 * expected.std()
    unrounded = reference_logits(checkpoint, fed, 4, 20)
    assert (found - unrounded).abs().max() > 1e-2 * expected.std()


class RoundedCheckpoint:
    """A checkpoint whose tensors are read by another function."""

    def __init__(self, checkpoint: Checkpoint, tensor: object) -> None:
        self.model, self.tensor_names, self.tensor = checkpoint.model, checkpoint.tensor_names, tensor


@pytest.mark.slow
def test_smollm2_in_four_bits_keeps_its_perplexity(smollm2_gguf: Path, tmp_path: Path) -> None:
    """21.1092 unquantized, 33.3 with groups of 64: the checkpoint's groups of four bits have 32."""
    settings = BuildConfig(max_batch_size=1, max_attention_window=128, dtype="float32", quantization="int4")
    build_cuda_engine(open_checkpoint(smollm2_gguf), settings, tmp_path / "e", lambda *_: None)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "e" / "tokenizer")
    ids = tokenizer(GPL.read_text(), add_special_tokens=False)["input_ids"][:700]
    assert math.exp(-load_on_cpu(tmp_path / "e").score(0, ids)[1:].mean()) == pytest.approx(21.1092, abs=0.01)


def test_columns_that_int4_cannot_take_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", "llama-gqa"))  # intermediate_size 96
    with pytest.raises(TrtstreamError, match=r"the weight of down has 96 columns, and int4 takes multiples of 64"):
        build_cuda_engine(checkpoint, replace(BuildConfig(), quantization="int4"), tmp_path / "engine", lambda *_: None)
    assert not (tmp_path / "engine").exists()


@pytest.mark.process
def test_the_commands(tmp_path: Path) -> None:
    """build needs no GPU, inspect shows the target, and serve refuses at once where the engine cannot run."""
    checkpoint, engine = write_checkpoint(tmp_path / "checkpoint", "llama-gqa"), tmp_path / "engine"
    built = run_in_process("build", checkpoint, "--output", engine, "--target", "cuda", "--quantization", "int8")
    assert built.returncode == 0, built.stderr
    assert "for target cuda" in built.stdout
    shown = json.loads(run_in_process("inspect", engine, "--json").stdout)
    assert (shown["target"], shown["build_config"]["dtype"]) == ("cuda", "bfloat16")
    if why_no_cuda():
        served = run_trtstream("serve", engine, "--grpc-port", 0, "--http-port", 0, "--metrics-port", 0)
        assert served.returncode == 1
        assert "target 'cuda' and cannot run here: " in served.stderr


def test_auto_is_the_best_that_can_run() -> None:
    without_tensorrt = "cpu" if why_no_cuda() else "cuda"
    assert best_target() == (without_tensorrt if TARGETS["tensorrt"].why_not() else "tensorrt")
