"""Engines of the cpu target with weights in blocks: what they store, and what they compute."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.checkpoints import write_checkpoint
from tests.command_line import run_in_process
from tests.engines import SIZES, build_variant, random_tokens
from tests.gguf_files import write_gguf
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.cpu import build_cpu_engine
from trtstream.engine_dir import WEIGHTS
from trtstream.errors import TrtstreamError
from trtstream.plugins.block_weight import BLOCK_FORMATS, BlockWeight
from trtstream.runtime.cpu import CpuBackend
from trtstream.runtime.decoder import collect_weights, open_weights
from trtstream.runtime.loading import load_engine
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.samples.gpl import GPL
from trtstream.settings import BuildConfig


def stored_values(engine: Path) -> dict[str, torch.Tensor]:
    """An engine's tensors in float32, blocks as gguf reads them."""
    values = {}
    for name, tensor in load_file(engine / WEIGHTS).items():
        module, _, kind = name.rpartition(".")
        if kind in BLOCK_FORMATS:
            values[f"{module}.weight"] = torch.from_numpy(dequantize(tensor.numpy(), GGMLQuantizationType[kind]))
        else:
            values[name] = tensor.float()
    return values


def in_torch(engine: StreamingEngine, folder: Path) -> StreamingEngine:
    """An engine that computes with the same values in float32, in torch."""
    values = stored_values(folder)

    def columns(module: str) -> int:
        sizes = {"attention_output": engine.model.num_attention_heads * engine.model.head_dim,
                 "down": engine.model.intermediate_size}  # fmt: skip
        return sizes.get(module.rpartition(".")[2], engine.model.hidden_size)

    unpadded = {
        name: value[:, : columns(name.removesuffix(".weight"))] if value.ndim == 2 else value
        for name, value in values.items()
    }
    weights = collect_weights(engine.model, set(unpadded), unpadded.__getitem__)
    return StreamingEngine(engine.model, engine.build, CpuBackend(engine.model, engine.build, weights))


@pytest.mark.quick("falcon-rw-int4")
@pytest.mark.parametrize(
    ("variant", "quantization"),
    [
        ("llama-gqa", "int8"),
        ("llama-bias", "int4"),
        ("llama-tied", "int4"),
        ("falcon-7b", "int8"),  # 40 columns
        ("falcon-40b", "int4"),
        ("falcon-rw", "int4"),
    ],
)
def test_steps_chunks_and_both(variant: str, quantization: str, tmp_path: Path) -> None:
    """Every way to compute with blocks, against floats in torch, past the window: activations lose next to nothing."""
    _, folder = build_variant(tmp_path, variant, **{**SIZES, "max_num_tokens": 50}, quantization=quantization)
    found = load_engine(folder)
    expected = in_torch(found, folder)
    errors = []
    for engine in (found, expected):
        engine.prefill(1, random_tokens(50, seed=1))
    for t in range(16):
        tokens, chunk = random_tokens(2, seed=t), random_tokens(1 + 3 * t, seed=100 + t)
        if t % 4 == 3:
            pair = [engine.decode_and_prefill([1], tokens[:1], {3: chunk}) for engine in (found, expected)]
        else:
            pair = [engine.decode([0, 1], tokens) for engine in (found, expected)]
        errors.append(float((pair[0] - pair[1]).abs().max() / pair[1].std()))
    assert max(errors) < 2e-3, errors


@pytest.mark.quick("llama-bias-Q4_0", "llama-tied-Q8_0")
@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("variant", ["llama-bias", "llama-tied", "falcon-40b"])
def test_a_gguf_files_blocks_are_kept(variant: str, name: str, tmp_path: Path) -> None:
    """In the file and in the engine's memory: of q and k too, whose rows move."""
    write_checkpoint(tmp_path / "hf", variant, bos_token_id=1, eos_token_id=2)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", tmp_path / "hf", name))
    for quantization in ("kept", "int8", "int4"):
        folder = tmp_path / quantization
        build_cpu_engine(checkpoint, BuildConfig(**SIZES, quantization=quantization), folder, lambda *_: None)
        stored = load_file(folder / WEIGHTS)
        values = stored_values(folder)
        assert set(values) == set(checkpoint.tensor_names())
        for tensor in checkpoint.tensor_names():
            is_matrix = checkpoint.blank_tensor(tensor).ndim == 2
            assert (f"{tensor.removesuffix('weight')}{name}" in stored) == is_matrix
            assert torch.equal(values[tensor], checkpoint.tensor(tensor).float())
    weights = load_engine(folder).backend.weights
    in_memory = [projection for layer in weights.layers for projection in (layer.qkv, layer.down)]
    assert all(isinstance(projection.weight, BlockWeight) for projection in in_memory)
    assert (weights.embedding.blocks is weights.lm_head.weight.blocks) == checkpoint.model.tie_word_embeddings


def test_other_formats_become_floats_or_are_converted(tmp_path: Path) -> None:
    """Of F16 there is nothing to keep; int8 converts it, the embedding and the head too."""
    write_checkpoint(tmp_path / "hf", "llama-gqa", bos_token_id=1, eos_token_id=2)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", tmp_path / "hf", "F16"))
    kinds = {}
    for quantization in ("kept", "int8", "int4"):
        build = BuildConfig(**SIZES, quantization=quantization)
        build_cpu_engine(checkpoint, build, tmp_path / quantization, lambda *_: None)
        stored = load_file(tmp_path / quantization / WEIGHTS)
        kinds[quantization] = {name.rpartition(".")[2] for name, tensor in stored.items() if tensor.ndim == 2}
    assert kinds == {"kept": {"weight"}, "int8": {"Q8_0"}, "int4": {"Q8_0", "Q4_1"}}


def test_the_command_line_keeps_blocks_unless_a_dtype_is_asked_for(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama-gqa", bos_token_id=1, eos_token_id=2)
    gguf = write_gguf(tmp_path / "model.gguf", tmp_path / "hf", "Q4_1")
    for options, expected in (
        ((), ("float32", "kept")),
        (("--dtype", "float32"), ("float32", "none")),
        (("--dtype", "bfloat16", "--quantization", "kept"), ("bfloat16", "kept")),
        (("--quantization", "int8"), ("float32", "int8")),
    ):
        engine = tmp_path / "-".join(("engine", *options))
        built = run_in_process(
            "build", gguf, "--output", engine, "--target", "cpu", "--max-attention-window", 32, *options
        )
        assert built.returncode == 0, built.stderr
        shown = json.loads(run_in_process("inspect", engine, "--json").stdout)
        assert (shown["build_config"]["dtype"], shown["build_config"]["quantization"]) == expected
        planned = shown["memory"]["weights_bytes"]
        embedding = load_engine(engine).backend.weights.embedding
        memory = getattr(embedding, "blocks", embedding).untyped_storage()  # of all matrices
        assert 0.8 < memory.nbytes() / planned < 1.2
    of_floats = run_in_process("build", tmp_path / "hf", "--output", tmp_path / "floats", "--target", "cpu",
                               "--max-attention-window", 32)  # fmt: skip
    assert of_floats.returncode == 0
    assert json.loads((tmp_path / "floats" / "config.json").read_text())["build_config"]["quantization"] == "none"
    refused = run_in_process("build", gguf, "--output", tmp_path / "no", "--target", "cuda", "--quantization", "kept")
    assert "quantization is 'kept'; the cuda target has none, int8, int4" in refused.stderr


def test_blocks_of_another_size_are_refused(tmp_path: Path) -> None:
    checkpoint, folder = build_variant(tmp_path, "llama-gqa", **SIZES, quantization="int8")
    tensors = load_file(folder / WEIGHTS)
    tensors["layers.1.down.Q8_0"] = tensors["layers.1.down.Q8_0"][:, :-34].contiguous()
    save_file(tensors, tmp_path / "edited.safetensors")
    with (
        pytest.raises(TrtstreamError, match=r"down\.Q8_0 is U8 \(64, 68\); config\.json gives it 64 rows of 96"),
        open_weights(tmp_path / "edited.safetensors", checkpoint.model, torch.device("cpu")),
    ):
        pass


@pytest.mark.slow
def test_smollm2s_own_blocks_predict_as_well_as_floats(smollm2_gguf: Path, tmp_path: Path) -> None:
    """In float32 the first 700 tokens of the GPL have a perplexity of 21.1092."""
    build = BuildConfig(max_batch_size=2, max_attention_window=128, quantization="kept")
    build_cpu_engine(open_checkpoint(smollm2_gguf), build, tmp_path / "engine", lambda *_: None)
    engine = load_engine(tmp_path / "engine")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "engine" / "tokenizer")
    ids = tokenizer(GPL.read_text(), add_special_tokens=False)["input_ids"][:700]
    assert math.exp(-engine.score(0, ids)[1:].mean()) == pytest.approx(21.1092, rel=1e-4)
