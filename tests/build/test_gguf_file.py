""".gguf files: tensors in every storage type, metadata as a config, SmolLM2 against transformers' own loader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter

from tests.checkpoints import PHI3, write_checkpoint
from tests.gguf_files import write_gguf
from trtstream.build.checkpoint import open_checkpoint
from trtstream.errors import TrtstreamError
from trtstream.settings import RopeConfig

# How far a value may be from its source, as a share of the largest absolute value in its block of 32: half a step (a
# whole one for Q4_0 and Q5_0, which clip), and for the float16 scale 2**-11 of the value.
ERRORS = {
    "F32": 0.0,
    "F16": 2**-11,
    "BF16": 2**-8,
    "Q8_0": 0.5 / 127 + 2**-11,
    "Q5_0": 1 / 16 + 2**-11,
    "Q5_1": 1 / 31 + 2**-10,
    "Q4_0": 1 / 8 + 2**-11,
    "Q4_1": 1 / 15 + 2**-10,
}
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


@pytest.mark.parametrize("quantization", ERRORS)
def test_tensors_of_every_type(quantization: str, tmp_path: Path) -> None:
    source = open_checkpoint(write_checkpoint(tmp_path / "hf", "llama-gqa"))
    read = open_checkpoint(write_gguf(tmp_path / "model.gguf", tmp_path / "hf", quantization))
    assert read.tensor_names() == source.tensor_names()
    for name in source.tensor_names():
        expected, tensor = source.tensor(name), read.tensor(name)
        if expected.ndim == 1:
            assert torch.equal(tensor, expected)
            continue
        assert tensor.dtype == DTYPES.get(quantization, torch.float32)
        blocks = expected.unflatten(1, (-1, 32))
        bound = ERRORS[quantization] * blocks.abs().amax(dim=2, keepdim=True)
        assert ((tensor.float().unflatten(1, (-1, 32)) - blocks).abs() <= bound).all(), name


@pytest.mark.parametrize(
    "variant",
    [
        "llama-mha",
        "llama-mqa",
        "llama-tied",
        "llama-bias",
        "llama-head-dim",
        "qwen2",
        "qwen3",
        "falcon-40b",
        "falcon-11b",
        "gpt-neox",
        "mpt-7b",
    ],
)
def test_round_trip(variant: str, tmp_path: Path) -> None:
    """A Hugging Face checkpoint written as GGUF, with q and k permuted, has the same canonical tensors and model."""
    source = open_checkpoint(write_checkpoint(tmp_path / "hf", variant, bos_token_id=1, eos_token_id=2))
    read = open_checkpoint(write_gguf(tmp_path / "model.gguf", tmp_path / "hf"))
    assert read.tensor_names() == source.tensor_names()
    for name in source.tensor_names():
        assert torch.equal(read.tensor(name), source.tensor(name)), name
    assert {**read.model.to_dict(), "norm_eps": 0} == {**source.model.to_dict(), "norm_eps": 0}
    assert read.model.norm_eps == pytest.approx(source.model.norm_eps)  # a float32 in GGUF


def test_multi_query_falcon_is_a_grouped_one_with_one_group(tmp_path: Path) -> None:
    source = open_checkpoint(write_checkpoint(tmp_path / "hf", "falcon-7b"))
    read = open_checkpoint(write_gguf(tmp_path / "model.gguf", tmp_path / "hf"))
    assert read.tensor_names() == source.tensor_names()
    for name in source.tensor_names():
        assert torch.equal(read.tensor(name), source.tensor(name)), name
    assert (read.model.num_key_value_heads, read.model.residual, read.model.shared_norm) == (1, "parallel", True)


def test_phi3_round_trip(tmp_path: Path) -> None:
    rope = {**PHI3["rope_parameters"], "attention_factor": 1.25}
    source = open_checkpoint(write_checkpoint(tmp_path / "hf", "phi3", rope_parameters=rope, bos_token_id=1))
    read = open_checkpoint(write_gguf(tmp_path / "model.gguf", tmp_path / "hf"))
    for name in source.tensor_names():
        assert torch.equal(read.tensor(name), source.tensor(name)), name
    assert read.model.rope == source.model.rope
    assert {**read.model.to_dict(), "norm_eps": 0} == {**source.model.to_dict(), "norm_eps": 0}


def linear(writer: GGUFWriter) -> None:
    writer.add_string("llama.rope.scaling.type", "linear")
    writer.add_rope_scaling_factor(4.0)


def yarn(writer: GGUFWriter) -> None:
    writer.add_string("llama.rope.scaling.type", "yarn")
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(1024)


@pytest.mark.parametrize(
    ("metadata", "rope"),
    [
        (linear, RopeConfig("linear", factor=4.0)),
        (
            yarn,
            RopeConfig("yarn", factor=4.0, original_max_position_embeddings=1024, beta_fast=32.0, beta_slow=1.0),
        ),
    ],
)
def test_rope_scaling(metadata: Callable[[GGUFWriter], None], rope: RopeConfig, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama-gqa")
    assert open_checkpoint(write_gguf(tmp_path / "model.gguf", tmp_path / "hf", metadata=metadata)).model.rope == rope


def llama3_divisors(original: int) -> np.ndarray:
    """GGUF's tensor for llama3 scaling by 8: transformers' plain frequencies over its scaled ones."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sizes = {"hidden_size": 64, "num_attention_heads": 1, "max_position_embeddings": 131072}
    bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": original}
    scaled = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, **bounds}
    plain = {"rope_type": "default", "rope_theta": 500000.0}
    frequencies = [
        LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_parameters=rope)).inv_freq for rope in (plain, scaled)
    ]
    return (frequencies[0] / frequencies[1]).numpy()


def test_llama3_scaling_is_recovered_from_its_divisors(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    write_checkpoint(tmp_path / "hf", "llama-gqa", head_dim=64, rope_parameters=rope)
    tensors = {"rope_freqs.weight": llama3_divisors(8192)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", tmp_path / "hf", tensors=tensors))
    assert checkpoint.model.rope == RopeConfig(
        "llama3",
        theta=500000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    tensors = {"rope_freqs.weight": llama3_divisors(4096)}
    write_gguf(tmp_path / "other.gguf", tmp_path / "hf", tensors=tensors)
    with pytest.raises(TrtstreamError, match=r"rope_freqs\.weight is not the RoPE scaling of a Llama 3"):
        open_checkpoint(tmp_path / "other.gguf")


def refuse(path: Path, message: str) -> None:
    with pytest.raises(TrtstreamError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama-gqa", num_hidden_layers=1)
    whole = write_gguf(tmp_path / "model.gguf", tmp_path / "hf").read_bytes()
    torn = tmp_path / "torn.gguf"
    for length in [*range(0, 4000, 97), len(whole) // 2, len(whole) - 1]:
        torn.write_bytes(whole[:length])
        refuse(torn, "damaged or not a GGUF file .*; fetch it again")


@pytest.mark.parametrize("offset", [8, 16])  # the numbers of tensors and of metadata
def test_a_count_that_lies_is_refused(offset: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama-gqa", num_hidden_layers=1)
    content = bytearray(write_gguf(tmp_path / "model.gguf", tmp_path / "hf").read_bytes())
    content[offset : offset + 8] = (2**62).to_bytes(8, "little")
    (tmp_path / "model.gguf").write_bytes(content)
    refuse(tmp_path / "model.gguf", "damaged or not a GGUF file")


def test_an_array_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    # GGUF 3, no tensors, one value: "a", an array of 2**62 bytes.
    key = (1).to_bytes(8, "little") + b"a"
    array = (9).to_bytes(4, "little") + (0).to_bytes(4, "little") + (2**62).to_bytes(8, "little")
    header = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    path.write_bytes(header + key + array)
    refuse(path, "damaged or not a GGUF file")


METADATA_REFUSALS: dict[str, tuple[Callable[[GGUFWriter], None], str]] = {
    "experts": (lambda writer: writer.add_expert_count(8), "a mixture of experts is not supported"),
    "parts": (lambda writer: writer.add_uint16("split.count", 3), "is one of 3 parts; join them first"),
    "longrope": (
        lambda writer: (writer.add_string("llama.rope.scaling.type", "longrope"), writer.add_rope_scaling_factor(2.0)),
        "short_factor is None; it must be a list",
    ),
    "yarn's own factor": (
        lambda writer: writer.add_float32("llama.rope.scaling.attn_factor", 1.5),
        r"'rope\.scaling\.attn_factor' is not supported",
    ),
}


@pytest.mark.parametrize("name", METADATA_REFUSALS)
def test_metadata_that_is_refused(name: str, tmp_path: Path) -> None:
    metadata, message = METADATA_REFUSALS[name]
    write_checkpoint(tmp_path / "hf", "llama-gqa", num_hidden_layers=1)
    refuse(write_gguf(tmp_path / "model.gguf", tmp_path / "hf", metadata=metadata), message)


def test_an_mpt_that_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "mpt-7b", num_hidden_layers=1)
    path = write_gguf(tmp_path / "grouped.gguf", tmp_path / "hf", metadata=lambda writer: writer.add_head_count_kv(2))
    refuse(path, r"attention\.head_count_kv must be attention\.head_count; grouped queries are not supported")
    write_checkpoint(tmp_path / "learned", "mpt-7b", num_hidden_layers=1, attn_config={"alibi_bias_max": 0})
    refuse(write_gguf(tmp_path / "learned.gguf", tmp_path / "learned"), r"attention\.max_alibi_bias is 0\.0")


def test_tensors_that_do_not_fit_are_named_as_the_file_names_them(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama-gqa", num_hidden_layers=1)
    extra = {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}
    path = write_gguf(tmp_path / "model.gguf", tmp_path / "hf", tensors=extra)
    refuse(path, r"no use for: 'blk\.0\.attn_q_norm\.weight'")
    integers = {"blk.0.attn_q.table": np.ones(16, np.int32)}
    path = write_gguf(tmp_path / "int.gguf", tmp_path / "hf", tensors=integers)
    refuse(path, r"'blk\.0\.attn_q\.table' is stored as I32, which cannot be read")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    refuse(
        write_gguf(tmp_path / "short.gguf", tmp_path / "hf"), r"lacks blk\.1\.attn_norm\.weight \[64\], .* and 4 more"
    )


def test_names_out_of_a_file_are_shown_in_one_line(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama-gqa", num_hidden_layers=1)
    extra = {"blk.0\n\x1b[31m": np.ones(16, np.float32)}
    path = write_gguf(tmp_path / "model.gguf", tmp_path / "hf", tensors=extra)
    refuse(path, r"no use for: 'blk\.0\\n\\x1b\[31m'")
    path = write_gguf(
        tmp_path / "key.gguf", tmp_path / "hf", metadata=lambda writer: writer.add_string("llama.rope.a\nb", "x")
    )
    refuse(path, r"'rope\.a\\nb' is not supported")


def test_an_architecture_that_is_not_supported_is_named(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refuse(
        tmp_path / "model.gguf",
        "the architecture 'mamba' is not supported; supported are llama, qwen2, qwen3, phi3, falcon, gptneox, mpt",
    )


@pytest.mark.slow
def test_smollm2_is_read_as_transformers_reads_it(smollm2_gguf: Path) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(smollm2_gguf)
    loaded = AutoModelForCausalLM.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32)
    config, model = loaded.config, checkpoint.model
    assert model.tie_word_embeddings
    assert model.rope.theta == config.rope_parameters["rope_theta"]
    for name in ("hidden_size", "num_key_value_heads", "head_dim", "max_position_embeddings", "vocab_size"):
        assert getattr(model, name) == getattr(config, name)
    attention = loaded.model.layers[7].self_attn
    fused = torch.cat([projection.weight for projection in (attention.q_proj, attention.k_proj, attention.v_proj)])
    torch.testing.assert_close(checkpoint.tensor("layers.7.qkv.weight"), fused.detach())
    down = loaded.model.layers[29].mlp.down_proj.weight.detach()
    torch.testing.assert_close(checkpoint.tensor("layers.29.down.weight"), down)
    embedding = loaded.model.embed_tokens.weight.detach()
    torch.testing.assert_close(checkpoint.tensor("embedding.weight"), embedding)
