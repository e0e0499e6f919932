"""The Falcon family: LayerNorm, an ungated MLP, and one fused projection for query, key and value.

7B (multi-query, parallel, one LayerNorm), 40B and 180B (``new_decoder_architecture``: grouped queries, parallel, two
LayerNorms), 11B (the same with one), RW-1B (ALiBi, biases, multi-head, sequential), and the mixtures of 7B and RW.
"""

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
        "embedding": "transformer.word_embeddings",
        "norm": "transformer.ln_f",
        "lm_head": "lm_head",
        "layer": "transformer.h",
        "shared_norm": "input_layernorm",
        "attention_norm": "ln_attn",
        "mlp_norm": "ln_mlp",
        "second_norm": "post_attention_layernorm",
        "qkv": "self_attention.query_key_value",
        "attention_output": "self_attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    "gguf": GGUF_NAMES | {"shared_norm": "attn_norm", "attention_norm": "attn_norm_2", "mlp_norm": "attn_norm"},
}


def model_config(raw: RawConfig) -> ModelConfig:
    vocab_size, hidden_size = raw.integer("vocab_size"), raw.integer("hidden_size", "n_embed")
    heads = raw.integer("num_attention_heads", "n_head")
    if hidden_size % heads:
        raise raw.error(f"hidden_size {hidden_size} must be a multiple of num_attention_heads {heads}")
    # The model types that predate Falcon in transformers have other defaults.
    model_type = raw.get("model_type", default="falcon")
    new_architecture = raw.flag("new_decoder_architecture", model_type == "RefinedWeb")
    multi_query = raw.flag("multi_query", model_type == "falcon")
    parallel = raw.flag("parallel_attn", model_type == "falcon" or new_architecture)
    alibi = raw.flag("alibi", False)
    shared_norm = parallel
    kv_heads = 1 if multi_query else heads
    if new_architecture:
        if alibi or not parallel:
            raise raw.error("new_decoder_architecture with alibi or without parallel_attn is not supported")
        kv_heads = raw.integer("num_kv_heads", "n_head_kv", default=heads)
        if heads % kv_heads:
            raise raw.error(f"num_attention_heads {heads} must be a multiple of num_kv_heads {kv_heads}")
        norms = raw.integer("num_ln_in_parallel_attn", default=2)
        if norms not in (1, 2):
            raise raw.error(f"num_ln_in_parallel_attn is {norms}; it must be 1 or 2")
        shared_norm = norms == 1
    head_dim = hidden_size // heads
    if head_dim % 2 and not alibi:
        raise raw.error(f"hidden_size / num_attention_heads is {head_dim}; RoPE needs an even number")
    max_position_embeddings = raw.integer("max_position_embeddings", default=2048)
    return ModelConfig(
        architecture="FalconForCausalLM",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=raw.integer("ffn_hidden_size", default=4 * hidden_size),
        num_hidden_layers=raw.integer("num_hidden_layers", "n_layer"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        norm="layer",
        norm_eps=raw.number("layer_norm_epsilon", default=1e-5, kind=NormEps),
        hidden_act=raw.activation("activation", "gelu"),
        gated_mlp=False,
        residual="parallel" if parallel else "sequential",
        shared_norm=shared_norm,
        tie_word_embeddings=raw.flag("tie_word_embeddings", True),
        rope=None if alibi else raw.rope(max_position_embeddings),
        sliding_window=raw.sliding_window(),
        bos_token_id=next(iter(raw.token_ids("bos_token_id", 11, vocab_size)), None),
        eos_token_ids=raw.token_ids("eos_token_id", 11, vocab_size),
    )


def gguf_config(metadata: RawConfig, tensor_names: Collection[str]) -> dict[str, Any]:
    """GGUF's Falcons are all parallel, and a multi-query one is a grouped one with a single key-value head."""
    return {
        "architectures": ["FalconForCausalLM"],
        "new_decoder_architecture": True,
        "ffn_hidden_size": metadata.integer("feed_forward_length"),
        "num_kv_heads": metadata.integer("attention.head_count_kv", default=1),
        "num_ln_in_parallel_attn": 2 if "blk.0.attn_norm_2.weight" in tensor_names else 1,
        "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon", kind=NormEps),
    }


def recipes(raw: RawConfig, model: ModelConfig, layout: Layout) -> Recipes:
    names, hidden, intermediate = NAMES[layout], model.hidden_size, model.intermediate_size
    heads, kv_heads, head_dim = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    bias = raw.flag("bias", False)
    if model.shared_norm:
        attention_norm, mlp_norm = "shared_norm", None
    elif model.residual == "parallel":
        attention_norm, mlp_norm = "attention_norm", "mlp_norm"
    else:
        attention_norm, mlp_norm = "shared_norm", "second_norm"

    def ungroup(parts: list[torch.Tensor]) -> torch.Tensor:
        """Rows come as one group per key-value head: its query heads, then its key, then its value. Multi-query is one
        group of all the queries, multi-head one group per head."""
        groups = parts[0].unflatten(0, (kv_heads, heads // kv_heads + 2, head_dim))
        return torch.cat([groups[:, :-2].flatten(0, 2), groups[:, -2].flatten(0, 1), groups[:, -1].flatten(0, 1)])

    def add_layer(tensors: Recipes, layer: str, stored: dict[str, str]) -> None:
        tensors.norm(f"{layer}.attention_norm", stored[attention_norm], hidden, bias=True)
        tensors.linear(
            f"{layer}.qkv",
            {stored["qkv"]: (heads + 2 * kv_heads) * head_dim},
            hidden,
            bias=bias,
            make=torch.cat if layout == "gguf" else ungroup,  # GGUF stores the rows in our order
        )
        tensors.linear(f"{layer}.attention_output", {stored["attention_output"]: hidden}, hidden, bias=bias)
        if mlp_norm:
            tensors.norm(f"{layer}.mlp_norm", stored[mlp_norm], hidden, bias=True)
        tensors.linear(f"{layer}.up", {stored["up"]: intermediate}, hidden, bias=bias)
        tensors.linear(f"{layer}.down", {stored["down"]: hidden}, intermediate, bias=bias)

    return decoder_recipes(model, names, add_layer)


FAMILY = Family(
    architectures={"falcon": "FalconForCausalLM", "RefinedWeb": "RWForCausalLM", "RefinedWebModel": "RWForCausalLM"},
    model_config=model_config,
    recipes=recipes,
    gguf_architecture="falcon",
    gguf_config=gguf_config,
)
