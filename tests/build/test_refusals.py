"""A checkpoint that cannot be used is refused before any work, with one line that names the fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import write_checkpoint
from tests.runtime.clients import byte_tokenizer
from trtstream.build.checkpoint import open_checkpoint
from trtstream.errors import TrtstreamError

Change = Callable[[Path], object]


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(TrtstreamError, match=message) as caught:
        open_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def config(**values: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def tensors(**values: torch.Tensor | None) -> Change:
    """Replace tensors (None: remove them); dots are written as two underscores."""

    def change(folder: Path) -> None:
        stored = load_file(folder / "model.safetensors")
        for name, value in values.items():
            name = name.replace("__", ".")
            if value is None:
                del stored[name]
            else:
                stored[name] = value
        save_file(stored, folder / "model.safetensors")

    return change


def rope(**parameters: object) -> Change:
    return config(rope_parameters={"rope_theta": 10000.0, **parameters})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index(shards: object) -> Change:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(json.dumps(shards))


def single_file_next_to_shards(folder: Path) -> None:
    (folder / "model-00001-of-00001.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    index({"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}})(folder)


def shard_with_a_name(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        index({"weight_map": {"lm_head.weight": name}})(folder)

    return change


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}})(folder)


def tensor_that_its_shard_lacks(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    save_file({"lm_head.weight": stored["lm_head.weight"]}, folder / "head.safetensors")
    files = dict.fromkeys(stored, "model.safetensors") | dict.fromkeys(
        ("lm_head.weight", "model.norm.weight"), "head.safetensors"
    )
    index({"weight_map": files})(folder)


REFUSALS: dict[str, tuple[str, Change, str]] = {
    "architecture": (
        "llama-gqa",
        config(architectures=["MixtralForCausalLM"], model_type="mixtral"),
        "the architecture 'MixtralForCausalLM' is not supported; supported are LlamaForCausalLM, MistralForCausalLM, ",
    ),
    "model type alone": (
        "llama-gqa",
        config(architectures=None, model_type="gpt_bigcode"),
        "the architecture 'gpt_bigcode' is not supported",
    ),
    "gptq": (
        "llama-gqa",
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantized \('gptq'\), which cannot be read; use the original",
    ),
    "int8 tensors": (
        "llama-gqa",
        tensors(model__norm__weight=torch.ones(64, dtype=torch.int8)),
        r"\'model\.norm\.weight\' is stored as I8; expected one of F64, F32, F16, BF16",
    ),
    "layers with and without a window": (
        "qwen2",
        config(use_sliding_window=True, sliding_window=4096, layer_types=None, max_window_layers=2),
        "its layers do not all have the same window",
    ),
    "layer types": (
        "mistral",
        config(layer_types={"a": 1}),
        r"layer_types is \{'a': 1\}; supported are full_attention and sliding_attention",
    ),
    "window layers": (
        "qwen2",
        config(use_sliding_window=True, sliding_window=4096, max_window_layers="2"),
        "max_window_layers is '2'; it must be a whole number",
    ),
    "activation": ("llama-gqa", config(hidden_act="mish"), "hidden_act is 'mish'; supported are silu, swish, gelu"),
    "rope type": (
        "llama-gqa",
        rope(rope_type="proportional"),
        "RoPE: the type 'proportional' is not supported; supported are d",
    ),
    "rope factor": ("llama-gqa", rope(rope_type="linear"), "RoPE: factor is None; it must be a finite number"),
    "rope bounds": (
        "llama-gqa",
        rope(rope_type="llama3", factor=8, low_freq_factor=4, high_freq_factor=1),
        r"config\.json: rope has high_freq_factor 1\.0; it must be above low_freq_factor 4\.0",
    ),
    "partial rotary": ("llama-gqa", config(partial_rotary_factor=0.5), "partial_rotary_factor must be 1"),
    "RoPE scaling of a Phi-3": (
        "phi3",
        config(rope_parameters={"rope_type": "linear", "factor": 2.0}),
        "the RoPE scaling of a Phi-3 is linear; supported are default and longrope",
    ),
    "longrope without factors": (
        "phi3",
        config(rope_parameters={"rope_type": "longrope"}),
        "RoPE: short_factor is None; it must be a list",
    ),
    "too few factors": (
        "phi3",
        config(rope_parameters={"rope_type": "longrope", "short_factor": [1.0] * 6}),
        "rope has 6 short_factors; expected 8",
    ),
    "MPT without ALiBi": (
        "mpt-7b",
        config(attn_config={"alibi": False}),
        "alibi of attn_config is False; supported is True",
    ),
    "MPT's norms of heads": (
        "mpt-7b",
        config(attn_config={"qk_ln": True}),
        "qk_ln of attn_config is True; supported is",
    ),
    "MPT's scale": (
        "mpt-7b",
        config(attn_config={"softmax_scale": 1.0}),
        r"softmax_scale of attn_config is 1\.0; supp",
    ),
    "MPT's logits": ("mpt-7b", config(logit_scale="inv_sqrt_d_model"), "logit_scale is not supported"),
    "MPT's attention of another kind": ("mpt-7b", config(attn_config=5), "attn_config is 5; it must be an object"),
    "partial rotary of an odd number": (
        "gpt-neox",
        config(rope_parameters={"partial_rotary_factor": 0.2}),
        r"partial_rotary_factor 0\.2 of 16 is 3; it must be an even number",
    ),
    "yarn with theta 1": (
        "llama-gqa",
        config(rope_parameters={"rope_type": "yarn", "rope_theta": 1, "factor": 4}),
        r"config\.json: rope has theta 1\.0; yarn needs a rope_theta above 1",
    ),
    "rope theta": (
        "llama-gqa",
        config(rope_parameters={"rope_theta": 1e31}),
        r"config\.json: RoPE: rope_theta is 1e\+31",
    ),
    "norm's eps": (
        "llama-gqa",
        config(rms_norm_eps=2),
        r"config\.json: rms_norm_eps is 2; it must be a finite number fr",
    ),
    "Falcon's eps": ("falcon-7b", config(layer_norm_epsilon=1.5), r"config\.json: layer_norm_epsilon is 1\.5; it must"),
    "derived size": (
        "falcon-7b",
        config(hidden_size=2**30, num_attention_heads=2, ffn_hidden_size=None),
        r"config\.json: ffn_hidden_size is 4294967296; it must be a whole number from 1",
    ),
    "value of 10,000 characters": ("llama-gqa", config(hidden_act="x" * 10_000), "hidden_act is 'xxx.*xxx'; supported"),
    "control characters": ("llama-gqa", config(architectures=["a\n\x1b[31m"]), r"'a\\n\\x1b\[31m' is not supported"),
    "tensor's name of control characters": (
        "llama-gqa",
        tensors(**{"a\nb\x1b[31m" + "x" * 1000: torch.ones(2)}),
        r"no use for: 'a\\nb\\x1b\[31mx+\.\.\.x+'; it computes",
    ),
    "shard's name of control characters": (
        "llama-gqa",
        shard_with_a_name("a\nb\x1b[31m.safetensors"),
        r"lacks 'a\\nb\\x1b\[31m\.safetensors', which",
    ),
    "shard's name of 10,000 characters": ("llama-gqa", shard_with_a_name("x" * 10_000), r"lacks 'x+\.\.\.x+', which"),
    "shard's name of nothing": ("llama-gqa", shard_with_a_name(""), "lacks '', which"),
    "odd heads": ("llama-gqa", config(head_dim=15), r"config\.json: head_dim is 15; RoPE needs an even number"),
    "grouping": ("llama-gqa", config(num_key_value_heads=3), "must be a multiple of num_key_value_heads 3"),
    "no size": ("llama-gqa", config(hidden_size=None), "hidden_size is None; it must be a whole number"),
    "size in words": ("llama-gqa", config(hidden_size="big"), "hidden_size is 'big'; it must be a whole number"),
    "flag": ("llama-gqa", config(attention_bias="no"), "attention_bias is 'no'; it must be true or false"),
    "end token": (
        "llama-gqa",
        lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}'),
        r"eos_token_id is \['</s>', 2\]; it must be a token id",
    ),
    "too many layers": ("llama-gqa", config(num_hidden_layers=10**9), "1000000000 layers are promised, but"),
    "vocabulary": (
        "llama-gqa",
        config(vocab_size=130),
        r"model\.embed_tokens\.weight is \[128, 64\], expected \[130, 64\], lm_head\.weight is",
    ),
    "missing tensors": (
        "llama-gqa",
        tensors(model__layers__1__mlp__up_proj__weight=None, lm_head__weight=None),
        r"lacks model\.layers\.1\.mlp\.up_proj\.weight \[96, 64\], lm_head\.weight \[128, 64\]; fetch",
    ),
    "missing biases": ("llama-gqa", config(mlp_bias=True), r"gate_proj\.bias \[96\], .* and 4 more; fetch or save"),
    "unexpected tensor": (
        "llama-gqa",
        tensors(model__layers__0__self_attn__q_norm__weight=torch.ones(16)),
        r"no use for: 'model\.layers\.0\.self_attn\.q_norm\.weight'; it computes something else",
    ),
    "new Falcon with ALiBi": ("falcon-40b", config(alibi=True), "new_decoder_architecture with alibi or without"),
    "sequential new Falcon": ("falcon-40b", config(parallel_attn=False), "new_decoder_architecture with alibi or"),
    "three norms": ("falcon-40b", config(num_ln_in_parallel_attn=3), "num_ln_in_parallel_attn is 3; it must be 1 or 2"),
    "another Falcon": (
        "falcon-7b",
        config(multi_query=False),
        r"query_key_value\.weight is \[56, 40\], expected \[120,",
    ),
    "torn file": ("llama-gqa", truncate, r"model\.safetensors is damaged or incomplete .*; fetch it again"),
    "pickles": ("llama-gqa", pickle_only, r"has only \.bin files, which are pickles .* save it again with save_pretr"),
    "no weights": ("llama-gqa", lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors"),
    "torn config": (
        "llama-gqa",
        lambda folder: (folder / "config.json").write_text('{"hidden_size": 6'),
        r"config\.json is not JSON .*; fetch it again",
    ),
    "config of another kind": (
        "llama-gqa",
        lambda folder: (folder / "config.json").write_text("[1]"),
        r"config\.json holds no JSON object",
    ),
    "no config": ("llama-gqa", lambda folder: (folder / "config.json").unlink(), r"has no config\.json; give a folder"),
    "single file next to shards": (
        "llama-gqa",
        single_file_next_to_shards,
        r"has both model\.safetensors and shards that model\.safetensors\.index\.json names, which may be different "
        r"weights; remove model\.safetensors\.index\.json to read model\.safetensors, or move model\.safetensors away",
    ),
    "missing shard": (
        "llama-gqa",
        missing_shard,
        r"lacks 'model-00001-of-00002\.safetensors', which model\.safetensors\.index\.json names",
    ),
    "shard elsewhere": (
        "llama-gqa",
        index({"weight_map": {"lm_head.weight": "../other.safetensors"}}),
        r"names the shard '\.\./other\.safetensors', which is outside its folder",
    ),
    "tensor that its shard lacks": (
        "llama-gqa",
        tensor_that_its_shard_lacks,
        r"lacks model\.norm\.weight \[64\]; fetch",
    ),
    "index of another kind": ("llama-gqa", index({"weights": []}), r"index\.json has no weight_map; fetch"),
    "shards without an index": (
        "llama-gqa",
        lambda folder: (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors"),
        r"but neither model\.safetensors nor model\.safetensors\.index\.json; add the index",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name: str, tmp_path: Path) -> None:
    variant, change, message = REFUSALS[name]
    change(write_checkpoint(tmp_path, variant))
    refuse(tmp_path, message)


def test_too_many_layers_are_refused_before_the_tokenizer_is_loaded(tmp_path: Path) -> None:
    """transformers reads the config for the tokenizer, and makes a list of all the layers of a Qwen2."""
    byte_tokenizer().save_pretrained(write_checkpoint(tmp_path, "qwen2"))
    config(num_hidden_layers=10**9)(tmp_path)
    refuse(tmp_path, "1000000000 layers are promised, but")


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    refuse(tmp_path / "nothing", "does not exist; give the path of a Hugging Face folder or of a .gguf file")
    refuse(tmp_path, r"has no config\.json; give a folder as transformers' save_pretrained writes it")
    (tmp_path / "model.onnx").touch()
    refuse(tmp_path / "model.onnx", r"is not a checkpoint; give a Hugging Face folder or a \.gguf file")
