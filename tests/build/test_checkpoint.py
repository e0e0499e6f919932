"""Every variant's tensors against transformers' own modules, and the spellings of a config."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from tests.checkpoints import VARIANTS, write_checkpoint
from trtstream.build.checkpoint import Checkpoint, open_checkpoint
from trtstream.build.families import find_family
from trtstream.build.families.mpt import alibi_slopes
from trtstream.build.families.raw_config import RawConfig
from trtstream.errors import TrtstreamError
from trtstream.plugins.positions import inverse_frequencies
from trtstream.settings import BuildConfig, RopeConfig, check_against_model, default_window

LLAMAS = [variant for variant in VARIANTS if variant.startswith(("llama", "mistral", "qwen"))]
FALCONS = [variant for variant in VARIANTS if variant.startswith("falcon")]


def same(checkpoint: Checkpoint, name: str, parameter: torch.Tensor | None) -> None:
    """The canonical tensor equals the parameter, or both are absent."""
    assert (name in checkpoint.tensor_names()) == (parameter is not None), name
    if parameter is not None:
        torch.testing.assert_close(checkpoint.tensor(name), parameter.detach(), rtol=0, atol=0)


def same_ends(checkpoint: Checkpoint, embedding: torch.nn.Embedding, norm: torch.nn.Module, lm_head: torch.nn.Linear):
    same(checkpoint, "embedding.weight", embedding.weight)
    same(checkpoint, "norm.weight", norm.weight)
    same(checkpoint, "norm.bias", getattr(norm, "bias", None))
    same(checkpoint, "lm_head.weight", None if checkpoint.model.tie_word_embeddings else lm_head.weight)


def replace_config(folder: Path, remove: tuple[str, ...] = (), **values: object) -> None:
    path = folder / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in remove}
    path.write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("variant", LLAMAS)
def test_llama_tensors(variant: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, variant))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    same_ends(checkpoint, model.model.embed_tokens, model.model.norm, model.lm_head)
    for i, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        projections = {
            "qkv": (attention.q_proj, attention.k_proj, attention.v_proj),
            "attention_output": (attention.o_proj,),
            "gate_up": (mlp.gate_proj, mlp.up_proj),
            "down": (mlp.down_proj,),
        }
        for name, modules in projections.items():
            same(checkpoint, f"layers.{i}.{name}.weight", torch.cat([module.weight for module in modules]))
            has_bias = modules[0].bias is not None
            bias = torch.cat([module.bias for module in modules]) if has_bias else None
            same(checkpoint, f"layers.{i}.{name}.bias", bias)
        for name in ("q_norm", "k_norm"):
            same(checkpoint, f"layers.{i}.{name}.weight", getattr(getattr(attention, name, None), "weight", None))
        same(checkpoint, f"layers.{i}.attention_norm.weight", layer.input_layernorm.weight)
        same(checkpoint, f"layers.{i}.mlp_norm.weight", layer.post_attention_layernorm.weight)


@pytest.mark.parametrize("variant", FALCONS)
def test_falcon_tensors(variant: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, variant))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    config = checkpoint.model
    same_ends(checkpoint, model.transformer.word_embeddings, model.transformer.ln_f, model.lm_head)
    for i, layer in enumerate(model.transformer.h):
        attention = layer.self_attention
        # The heads as transformers splits them, seen through the identity.
        fused = attention.query_key_value.weight.detach().T[None]
        heads = [head.transpose(1, 2)[0].mT.flatten(0, 1) for head in attention._split_heads(fused)]
        rows = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        parts = checkpoint.tensor(f"layers.{i}.qkv.weight").split([n * config.head_dim for n in rows])
        for part, expected in zip(parts, heads, strict=True):
            repeated = part.unflatten(0, (-1, config.head_dim))
            repeated = repeated.repeat_interleave(len(expected) // len(part), dim=0).flatten(0, 1)
            torch.testing.assert_close(repeated, expected, rtol=0, atol=0)
        linears = {"attention_output": attention.dense, "up": layer.mlp.dense_h_to_4h, "down": layer.mlp.dense_4h_to_h}
        names = {"attention_norm": ("ln_attn", "input_layernorm"), "mlp_norm": ("ln_mlp", "post_attention_layernorm")}
        norms = {
            name: next((getattr(layer, theirs) for theirs in candidates if hasattr(layer, theirs)), None)
            for name, candidates in names.items()
        }
        for name, module in {**linears, **norms}.items():
            same(checkpoint, f"layers.{i}.{name}.weight", getattr(module, "weight", None))
            same(checkpoint, f"layers.{i}.{name}.bias", getattr(module, "bias", None))


def test_falcon_qkv_bias_is_split_like_its_weight(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, "falcon-rw"))
    attention = AutoModelForCausalLM.from_pretrained(tmp_path).transformer.h[1].self_attention
    split = attention._split_heads(attention.query_key_value.bias.detach()[None, None])
    torch.testing.assert_close(checkpoint.tensor("layers.1.qkv.bias"), torch.cat([part.flatten() for part in split]))


def test_tensors_keep_the_dtype_they_are_stored_in(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "float32", "llama-gqa")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "bfloat16")
    assert open_checkpoint(tmp_path / "bfloat16").tensor("layers.0.qkv.weight").dtype == torch.bfloat16


def test_a_sharded_checkpoint_reads_like_a_single_file(tmp_path: Path) -> None:
    single = open_checkpoint(write_checkpoint(tmp_path / "single", "llama-gqa"))
    sharded = open_checkpoint(write_checkpoint(tmp_path / "sharded", "llama-gqa", max_shard_size="50KB"))
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    for name in single.tensor_names():
        assert torch.equal(single.tensor(name), sharded.tensor(name))


def test_an_index_of_shards_that_are_gone_leaves_the_single_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama-gqa", max_shard_size="50KB")
    for shard in tmp_path.glob("model-*.safetensors"):
        shard.unlink()
    single = open_checkpoint(write_checkpoint(tmp_path / "single", "llama-gqa", seed=1))
    (tmp_path / "single" / "model.safetensors").rename(tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(checkpoint.tensor("embedding.weight"), model.model.embed_tokens.weight)
    assert checkpoint.model == single.model


@pytest.mark.parametrize("base", ["model.safetensors", "model-00001-of-00001.safetensors"])
def test_the_index_decides_where_two_shards_have_a_tensor(base: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama-gqa")
    stored = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / base)
    overlay = {name: stored[name] * 2 for name in ("model.norm.weight", "lm_head.weight")}
    save_file(overlay, tmp_path / "a-overlay.safetensors")
    files = {**dict.fromkeys(stored, base), "model.norm.weight": "a-overlay.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint.tensor("norm.weight"), overlay["model.norm.weight"])
    assert torch.equal(checkpoint.tensor("lm_head.weight"), stored["lm_head.weight"])


def test_the_tensors_are_all_that_a_model_has(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, "llama-tied"))
    elements = sum(checkpoint.tensor(name).numel() for name in checkpoint.tensor_names())
    assert elements == AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters()


ROPE = {
    "llama-gqa": RopeConfig(),
    "llama-rope-linear": RopeConfig("linear", factor=4.0),
    "llama-rope-dynamic": RopeConfig("dynamic", factor=2.0),
    "llama-rope-llama3": RopeConfig(
        "llama3", factor=4.0, original_max_position_embeddings=1024, low_freq_factor=1.0, high_freq_factor=4.0
    ),
    "llama-rope-yarn": RopeConfig("yarn", factor=4.0, original_max_position_embeddings=1024),
}


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("variant", ROPE)
def test_old_and_new_spellings_of_rope(variant: str, key: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, variant)
    assert open_checkpoint(tmp_path).model.rope == ROPE[variant]
    scaling = dict(VARIANTS[variant].get("rope_parameters", {}))
    scaling.pop("rope_theta", None)
    kind = scaling.pop("rope_type", "default")
    scaling = None if kind == "default" else {key: kind, **scaling}
    replace_config(tmp_path, remove=("rope_parameters",), rope_theta=5e5, rope_scaling=scaling)
    rope = open_checkpoint(tmp_path).model.rope
    assert rope == RopeConfig(**{**vars(ROPE[variant]), "theta": 5e5})


def test_yarn_keeps_what_the_config_sets(tmp_path: Path) -> None:
    yarn = {"beta_fast": 16, "beta_slow": 2, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False}
    write_checkpoint(tmp_path, "llama-rope-yarn")
    replace_config(tmp_path, rope_parameters={"rope_type": "yarn", "factor": 2.0, **yarn})
    # Without an original context it is the context itself, as in transformers.
    expected = RopeConfig("yarn", factor=2.0, original_max_position_embeddings=4096, **yarn)
    assert open_checkpoint(tmp_path).model.rope == expected


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024}
UNSET: dict[str, dict[str, object]] = {
    "mscale_all_dim": {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0}},
    "mscale": {"rope_parameters": {**YARN, "mscale": 0.0, "mscale_all_dim": 1.0}},
    "betas": {"rope_parameters": {**YARN, "beta_fast": 0, "beta_slow": 0.0}},
    "null": {"rope_parameters": {**YARN, "attention_factor": None, "beta_fast": None, "mscale": None}},
    "truncate": {"rope_parameters": {**YARN, "truncate": None}},
    "rope_scaling": {"rope_scaling": {}, "rope_parameters": YARN},
    "sliding_window": {"sliding_window": 0},
}


@pytest.mark.parametrize("name", UNSET)
def test_what_counts_as_unset_in_transformers_does_here(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama-gqa")
    replace_config(tmp_path, **UNSET[name])
    model = open_checkpoint(tmp_path).model
    assert model.rope is not None
    frequencies, scale = inverse_frequencies(model.rope, model.head_dim)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path).model.rotary_emb
    torch.testing.assert_close(frequencies.float(), expected.inv_freq)
    assert scale == pytest.approx(expected.attention_scaling)


def test_a_flag_of_null_is_false_as_in_transformers(tmp_path: Path) -> None:
    written = open_checkpoint(write_checkpoint(tmp_path, "falcon-mha-parallel")).model
    replace_config(tmp_path, multi_query=None, alibi=None)
    assert open_checkpoint(tmp_path).model == written


@pytest.mark.parametrize(
    ("variant", "model_type"),
    [("falcon-7b", "RefinedWebModel"), ("falcon-40b", "RefinedWeb"), ("falcon-rw", "RefinedWebModel")],
)
def test_falcon_from_before_transformers_had_it(variant: str, model_type: str, tmp_path: Path) -> None:
    new = open_checkpoint(write_checkpoint(tmp_path, variant)).model
    config = json.loads((tmp_path / "config.json").read_text())
    flags = {"multi_query": True, "parallel_attn": True} if variant == "falcon-7b" else {}
    if variant == "falcon-40b":
        flags = {"n_head_kv": config["num_kv_heads"], "parallel_attn": True}
    kept = ("vocab_size", "hidden_size", "alibi", "bias", "bos_token_id", "eos_token_id", "tie_word_embeddings")
    old = {key: config[key] for key in kept} | flags
    old |= {"n_layer": config["num_hidden_layers"], "n_head": config["num_attention_heads"], "model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps({**old, "architectures": ["RWForCausalLM"]}))
    read = open_checkpoint(tmp_path).model
    # The old spelling has no context length: 2048, as transformers' default.
    assert {**read.to_dict(), "max_position_embeddings": 4096} == new.to_dict()


def test_end_tokens_of_a_chat_model_come_from_its_generation_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama-gqa")
    assert open_checkpoint(tmp_path).model.eos_token_ids == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2, 999]}))
    assert open_checkpoint(tmp_path).model.eos_token_ids == (5, 2)  # 999 is not in the vocabulary
    (tmp_path / "generation_config.json").unlink()
    replace_config(tmp_path, bos_token_id=None, eos_token_id=None)
    model = open_checkpoint(tmp_path).model
    assert (model.bos_token_id, model.eos_token_ids) == (None, ())


def test_a_tied_model_whose_head_is_stored_too(tmp_path: Path) -> None:
    """Equal, the head is a duplicate; different, the config is wrong, and transformers does not tie either."""
    untied = open_checkpoint(write_checkpoint(tmp_path, "llama-gqa"))
    replace_config(tmp_path, tie_word_embeddings=True)
    assert not open_checkpoint(tmp_path).model.tie_word_embeddings
    assert torch.equal(open_checkpoint(tmp_path).tensor("lm_head.weight"), untied.tensor("lm_head.weight"))

    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, tmp_path / "model.safetensors")
    tied = open_checkpoint(tmp_path)
    assert tied.model.tie_word_embeddings
    assert "lm_head.weight" not in tied.tensor_names()


def test_longrope_is_for_the_original_context(tmp_path: Path) -> None:
    model = open_checkpoint(write_checkpoint(tmp_path, "phi3", num_hidden_layers=1)).model
    assert model.rope.attention_factor == pytest.approx(1.2**0.5)  # 1 + log(4096 / 1024) / log(1024)
    for window in (1024, 1025):
        build = BuildConfig(max_attention_window=window)
        if window == 1024:
            check_against_model(build, model, force=False)
            continue
        with pytest.raises(TrtstreamError, match="beyond the checkpoint's context of 1024, and its longrope RoPE scal"):
            check_against_model(build, model, force=True)
    assert default_window(replace(model, rope=replace(model.rope, original_max_position_embeddings=512))) == 512


def test_mpts_defaults_and_slopes_are_those_of_transformers() -> None:
    raw, theirs = RawConfig("config", {"model_type": "mpt"}), AutoConfig.for_model("mpt")
    model = find_family(raw).model_config(raw)
    sizes = (theirs.vocab_size, theirs.d_model, theirs.n_layers, theirs.n_heads, theirs.max_seq_len)
    assert sizes == (
        *(model.vocab_size, model.hidden_size, model.num_hidden_layers),
        *(model.num_attention_heads, model.max_position_embeddings),
    )
    assert (model.norm_eps, model.tie_word_embeddings) == (theirs.layer_norm_epsilon, theirs.tie_word_embeddings)
    for heads in (1, 8, 12, 71):
        expected = -build_mpt_alibi_tensor(heads, 2, alibi_bias_max=8)[:, 0, 0]
        torch.testing.assert_close(torch.tensor(alibi_slopes(heads, 8)), expected)


def test_gpt_neox_spellings(tmp_path: Path) -> None:
    """Of its first checkpoints, which also store the mask and the frequencies that transformers had as buffers."""
    written = open_checkpoint(write_checkpoint(tmp_path, "gpt-neox")).model
    assert written.rope == RopeConfig(rotary_dim=4)
    stored = load_file(tmp_path / "model.safetensors")
    stored["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    stored["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    stored["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(stored, tmp_path / "model.safetensors")
    replace_config(tmp_path, remove=("rope_parameters", "attention_bias"))
    assert open_checkpoint(tmp_path).model == written
    replace_config(tmp_path, rotary_pct=0.5, rotary_emb_base=5000, use_parallel_residual=False)
    model, theirs = open_checkpoint(tmp_path).model, AutoConfig.from_pretrained(tmp_path)
    assert model.rope == RopeConfig(theta=theirs.rope_parameters["rope_theta"], rotary_dim=8)
    assert theirs.rope_parameters["partial_rotary_factor"] == 0.5
    assert model.residual == "sequential"


@pytest.mark.parametrize("variant", ["mistral", "qwen2", "qwen3", "phi3"])
def test_what_a_config_leaves_out_is_as_in_transformers(variant: str) -> None:
    sizes = {"vocab_size": 40000, "hidden_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 32}
    raw = RawConfig("config", {**sizes, "model_type": variant, "intermediate_size": 96})
    model, theirs = find_family(raw).model_config(raw), AutoConfig.for_model(variant, **sizes)
    assert model.num_key_value_heads == theirs.num_key_value_heads
    assert model.head_dim == (getattr(theirs, "head_dim", None) or 64)
    assert model.max_position_embeddings == theirs.max_position_embeddings
    assert model.norm_eps == theirs.rms_norm_eps
    assert model.tie_word_embeddings == theirs.tie_word_embeddings
    assert model.sliding_window == theirs.sliding_window
    assert model.bos_token_id == theirs.bos_token_id
    assert model.eos_token_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    assert model.rope == RopeConfig(theta=theirs.rope_parameters["rope_theta"])
