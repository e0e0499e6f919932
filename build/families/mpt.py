"""The MPT family: LayerNorm and projections without biases, and ALiBi of its own slopes, added to the scaled scores."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from trtstream.build.families.family import GGUF_NAMES, Family, Layout, decoder_recipes
from trtstream.build.families.raw_config import RawConfig
from trtstream.build.recipes import Recipes
from trtstream.settings import ModelConfig, NormEps
from trtstream.typed_json import shown

NAMES = {
    "huggingface": {
        "embedding": "transformer.wte",
        "norm": "transformer.norm_f",
        "lm_head": "lm_head",
        "layer": "transformer.blocks",
        "attention_norm": "norm_1",
        "qkv": "attn.Wqkv",
        "attention_output": "attn.out_proj",
        "mlp_norm": "norm_2",
        "up": "ffn.up_proj",
        "down": "ffn.down_proj",
    },
    "gguf": GGUF_NAMES,
}
ONLY: dict[str, Any] = {
    "alibi": True,
    "attn_type": "multihead_attention",
    "prefix_lm": False,
    "qk_ln": False,
    "softmax_scale": None,
}
"""What ``attn_config`` must say, where it says anything: the only value that is computed here, which is the default."""


def model_config(raw: RawConfig) -> ModelConfig:
    vocab_size, hidden_size = raw.integer("vocab_size", default=50368), raw.integer("d_model", default=2048)
    heads = raw.integer("n_heads", default=16)
    if hidden_size % heads:
        raise raw.error(f"d_model {hidden_size} must be a multiple of n_heads {heads}")
    if raw.get("logit_scale") is not None:
        raise raw.error("logit_scale is not supported")
    attention = _attention(raw)
    clip = attention.get("clip_qkv")
    return ModelConfig(
        architecture="MptForCausalLM",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * raw.integer("expansion_ratio", default=4),
        num_hidden_layers=raw.integer("n_layers", default=24),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden_size // heads,
        max_position_embeddings=raw.integer("max_seq_len", default=2048),
        norm="layer",
        norm_eps=raw.number("layer_norm_epsilon", default=1e-5, kind=NormEps),
        hidden_act="gelu",
        gated_mlp=False,
        residual="sequential",
        shared_norm=False,
        tie_word_embeddings=raw.flag("tie_word_embeddings", True),
        rope=None,
        bos_token_id=next(iter(raw.token_ids("bos_token_id", None, vocab_size)), None),
        eos_token_ids=raw.token_ids("eos_token_id", None, vocab_size),
        alibi_slopes=alibi_slopes(heads, attention.number("alibi_bias_max", default=8.0)),
        clip_qkv=attention.number("clip_qkv") if clip else None,  # 0 counts as unset, as in transformers
    )


def _attention(raw: RawConfig) -> RawConfig:
    """The config's ``attn_config``. Raises TrtstreamError for an attention that is not supported."""
    values = raw.get("attn_config", default={})
    if not isinstance(values, dict):
        raise raw.error(f"attn_config is {shown(values)}; it must be an object")
    for name, value in ONLY.items():
        if values.get(name, value) != value:
            raise raw.error(f"{name} of attn_config is {shown(values[name])}; supported is {value}")
    return RawConfig(f"{raw.where}: attn_config", values)


def alibi_slopes(heads: int, bias_max: float) -> tuple[float, ...]:
    """What a token of distance takes off a scaled score in each head: powers of two, to 2 ** -bias_max.

    Where the number of heads is no power of two, they come from the next one: every second slope, then those between.
    """
    power_of_two = 2 ** math.ceil(math.log2(heads))
    slopes = [2.0 ** (-bias_max * i / power_of_two) for i in range(1, power_of_two + 1)]
    if power_of_two != heads:
        slopes = [*slopes[1::2], *slopes[::2]]
    return tuple(slopes[:heads])


def gguf_config(metadata: RawConfig, tensor_names: Collection[str]) -> dict[str, Any]:
    hidden_size, intermediate = metadata.integer("embedding_length"), metadata.integer("feed_forward_length")
    if intermediate % hidden_size:
        raise metadata.error(f"feed_forward_length {intermediate} must be a multiple of embedding_length {hidden_size}")
    heads = metadata.integer("attention.head_count")
    if metadata.integer("attention.head_count_kv", default=heads) != heads:
        raise metadata.error("attention.head_count_kv must be attention.head_count; grouped queries are not supported")
    return {
        "architectures": ["MptForCausalLM"],
        "d_model": hidden_size,
        "n_heads": heads,
        "n_layers": metadata.integer("block_count"),
        "max_seq_len": metadata.integer("context_length"),
        "expansion_ratio": intermediate // hidden_size,
        "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon", kind=NormEps),
        "attn_config": {
            "alibi_bias_max": metadata.number("attention.max_alibi_bias"),
            "clip_qkv": metadata.get("attention.clamp_kqv"),
        },
    }


def recipes(raw: RawConfig, model: ModelConfig, layout: Layout) -> Recipes:
    hidden, intermediate = model.hidden_size, model.intermediate_size

    def add_layer(tensors: Recipes, layer: str, stored: dict[str, str]) -> None:
        tensors.norm(f"{layer}.attention_norm", stored["attention_norm"], hidden)
        tensors.linear(f"{layer}.qkv", {stored["qkv"]: 3 * hidden}, hidden)
        tensors.linear(f"{layer}.attention_output", {stored["attention_output"]: hidden}, hidden)
        tensors.norm(f"{layer}.mlp_norm", stored["mlp_norm"], hidden)
        tensors.linear(f"{layer}.up", {stored["up"]: intermediate}, hidden)
        tensors.linear(f"{layer}.down", {stored["down"]: hidden}, intermediate)

    return decoder_recipes(model, NAMES[layout], add_layer, norm_bias=False)


FAMILY = Family(
    architectures={"mpt": "MptForCausalLM"},
    model_config=model_config,
    recipes=recipes,
    gguf_architecture="mpt",
    gguf_config=gguf_config,
)
