"""The GPT-NeoX family, which Pythia is of: LayerNorm, an ungated MLP, and RoPE in a part of each head."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from trtstream.build.families.family import GGUF_NAMES, Family, Layout, decoder_recipes
from trtstream.build.families.partial_rotary import spread
from trtstream.build.families.raw_config import RawConfig
from trtstream.build.recipes import Recipes
from trtstream.settings import ModelConfig, NormEps

NAMES = {
    "huggingface": {
        "embedding": "gpt_neox.embed_in",
        "norm": "gpt_neox.final_layer_norm",
        "lm_head": "embed_out",
        "layer": "gpt_neox.layers",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "qkv": "attention.query_key_value",
        "attention_output": "attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    "gguf": GGUF_NAMES,
}


def model_config(raw: RawConfig) -> ModelConfig:
    vocab_size, hidden_size = raw.integer("vocab_size"), raw.integer("hidden_size")
    heads = raw.integer("num_attention_heads")
    if hidden_size % heads:
        raise raw.error(f"hidden_size {hidden_size} must be a multiple of num_attention_heads {heads}")
    head_dim = hidden_size // heads
    max_position_embeddings = raw.integer("max_position_embeddings", default=2048)
    # Its own names of what others call partial_rotary_factor and rope_theta.
    own_names = {
        "partial_rotary_factor": raw.get("rotary_pct", default=0.25),
        "rope_theta": raw.get("rotary_emb_base", default=10000.0),
    }
    return ModelConfig(
        architecture="GPTNeoXForCausalLM",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=raw.integer("intermediate_size", default=24576),
        num_hidden_layers=raw.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        norm="layer",
        norm_eps=raw.number("layer_norm_eps", default=1e-5, kind=NormEps),
        hidden_act=raw.activation("hidden_act", "gelu"),
        gated_mlp=False,
        residual="parallel" if raw.flag("use_parallel_residual", True) else "sequential",
        shared_norm=False,
        tie_word_embeddings=raw.flag("tie_word_embeddings", False),
        rope=replace(raw, values=raw.values | own_names).rope(max_position_embeddings, partial_of=head_dim),
        bos_token_id=next(iter(raw.token_ids("bos_token_id", 0, vocab_size)), None),
        eos_token_ids=raw.token_ids("eos_token_id", 2, vocab_size),
    )


def gguf_config(metadata: RawConfig, tensor_names: Collection[str]) -> dict[str, Any]:
    """GGUF does not say which approximation of GELU a model was trained with: Pythia's and the default is none."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "rotary_pct": 1.0,  # unless the RoPE parameters, which every family has, name another part of a head
        "use_parallel_residual": metadata.flag("use_parallel_residual", True),
        "layer_norm_eps": metadata.number("attention.layer_norm_epsilon", kind=NormEps),
        "attention_bias": "blk.0.attn_qkv.bias" in tensor_names,
    }


def recipes(raw: RawConfig, model: ModelConfig, layout: Layout) -> Recipes:
    hidden, intermediate = model.hidden_size, model.intermediate_size
    bias = raw.flag("attention_bias", True)

    def order(parts: list[torch.Tensor]) -> torch.Tensor:
        """Rows come as a group for each head: its query, its key, its value. GGUF has all queries first, then keys."""
        if layout == "gguf":
            q, k, v = parts[0].chunk(3)
        else:
            q, k, v = (rows.flatten(0, 1) for rows in parts[0].unflatten(0, (-1, 3, model.head_dim)).unbind(1))
        return torch.cat([spread(q, model), spread(k, model), v])

    def add_layer(tensors: Recipes, layer: str, stored: dict[str, str]) -> None:
        tensors.norm(f"{layer}.attention_norm", stored["attention_norm"], hidden, bias=True)
        tensors.linear(f"{layer}.qkv", {stored["qkv"]: 3 * hidden}, hidden, bias=bias, make=order)
        tensors.linear(f"{layer}.attention_output", {stored["attention_output"]: hidden}, hidden, bias=bias)
        tensors.norm(f"{layer}.mlp_norm", stored["mlp_norm"], hidden, bias=True)
        tensors.linear(f"{layer}.up", {stored["up"]: intermediate}, hidden, bias=True)
        tensors.linear(f"{layer}.down", {stored["down"]: hidden}, intermediate, bias=True)

    return decoder_recipes(model, NAMES[layout], add_layer)


FAMILY = Family(
    architectures={"gpt_neox": "GPTNeoXForCausalLM"},
    model_config=model_config,
    recipes=recipes,
    gguf_architecture="gptneox",
    gguf_config=gguf_config,
)
