"""The Llama family: RMSNorm, RoPE, a gated MLP, and one projection each for query, key, value, gate and up."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from trtstream.build.families.family import GGUF_NAMES, Family, Layout, decoder_recipes
from trtstream.build.families.raw_config import RawConfig
from trtstream.build.recipes import Recipes
from trtstream.settings import ModelConfig, NormEps

NAMES = {
    "huggingface": {
        "embedding": "model.embed_tokens",
        "norm": "model.norm",
        "lm_head": "lm_head",
        "layer": "model.layers",
        "attention_norm": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
        "attention_output": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    "gguf": GGUF_NAMES,
}


def model_config(raw: RawConfig, partial_rotary: bool = False) -> ModelConfig:
    """``partial_rotary``: whether the config may have a part of each head rotate."""
    vocab_size, hidden_size = raw.integer("vocab_size"), raw.integer("hidden_size")
    heads = raw.integer("num_attention_heads")
    kv_heads = raw.integer("num_key_value_heads", default=heads)
    if raw.get("head_dim") is None and hidden_size % heads:
        raise raw.error(f"hidden_size {hidden_size} must be a multiple of num_attention_heads {heads}")
    head_dim = raw.integer("head_dim", default=hidden_size // heads)
    max_position_embeddings = raw.integer("max_position_embeddings", default=2048)
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=raw.integer("intermediate_size"),
        num_hidden_layers=raw.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        norm="rms",
        norm_eps=raw.number("rms_norm_eps", default=1e-6, kind=NormEps),
        hidden_act=raw.activation("hidden_act", "silu"),
        gated_mlp=True,
        residual="sequential",
        shared_norm=False,
        tie_word_embeddings=raw.flag("tie_word_embeddings", False),
        rope=raw.rope(max_position_embeddings, partial_of=head_dim if partial_rotary else None),
        sliding_window=raw.sliding_window(),
        bos_token_id=next(iter(raw.token_ids("bos_token_id", 1, vocab_size)), None),
        eos_token_ids=raw.token_ids("eos_token_id", 2, vocab_size),
    )


def gguf_config(metadata: RawConfig, tensor_names: Collection[str]) -> dict[str, Any]:
    if metadata.get("expert_count"):
        raise metadata.error("a mixture of experts is not supported")
    return {
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": metadata.integer(
            "attention.head_count_kv", default=metadata.integer("attention.head_count")
        ),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon", kind=NormEps),
        "attention_bias": "blk.0.attn_q.bias" in tensor_names,
        "mlp_bias": "blk.0.ffn_down.bias" in tensor_names,
    }


def recipes(raw: RawConfig, model: ModelConfig, layout: Layout) -> Recipes:
    biased = {
        "qkv": raw.flag("attention_bias", False),
        "attention_output": raw.flag("attention_bias", False),
        "mlp": raw.flag("mlp_bias", False),
    }
    return gated_recipes(model, layout, {name for name, has_bias in biased.items() if has_bias}, layout == "gguf")


def gated_recipes(model: ModelConfig, layout: Layout, biased: Collection[str], adjacent_pairs: bool) -> Recipes:
    """The recipes of a decoder with these names.

    ``biased`` are those of ``qkv``, ``attention_output`` and ``mlp`` that have biases. ``adjacent_pairs``: the two
    dimensions of q and k that rotate together are stored next to each other, not half a head apart.
    """
    names, hidden, intermediate = NAMES[layout], model.hidden_size, model.intermediate_size
    q_rows, kv_rows = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim

    def fuse_pairs(parts: list[torch.Tensor]) -> torch.Tensor:
        q, k, v = parts
        return torch.cat([_half_split(q, model.num_attention_heads), _half_split(k, model.num_key_value_heads), v])

    def add_layer(tensors: Recipes, layer: str, stored: dict[str, str]) -> None:
        tensors.norm(f"{layer}.attention_norm", stored["attention_norm"], hidden)
        tensors.linear(
            f"{layer}.qkv",
            {stored["q"]: q_rows, stored["k"]: kv_rows, stored["v"]: kv_rows},
            hidden,
            bias="qkv" in biased,
            make=fuse_pairs if adjacent_pairs else torch.cat,
        )
        if model.qk_norm:
            tensors.norm(f"{layer}.q_norm", stored["q_norm"], model.head_dim)
            tensors.norm(f"{layer}.k_norm", stored["k_norm"], model.head_dim)
        output_bias, mlp_bias = "attention_output" in biased, "mlp" in biased
        tensors.linear(f"{layer}.attention_output", {stored["attention_output"]: hidden}, q_rows, bias=output_bias)
        tensors.norm(f"{layer}.mlp_norm", stored["mlp_norm"], hidden)
        tensors.linear(
            f"{layer}.gate_up", {stored["gate"]: intermediate, stored["up"]: intermediate}, hidden, bias=mlp_bias
        )
        tensors.linear(f"{layer}.down", {stored["down"]: hidden}, intermediate, bias=mlp_bias)

    return decoder_recipes(model, names, add_layer)


def _half_split(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Put the two dimensions that rotate together, which are next to each other, half a head apart."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


FAMILY = Family(
    architectures={"llama": "LlamaForCausalLM"},
    model_config=model_config,
    recipes=recipes,
    gguf_architecture="llama",
    gguf_config=gguf_config,
)
