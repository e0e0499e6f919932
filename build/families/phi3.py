"""The Phi-3 family, which Phi-4 is of too: Llamas with fused projections, of which a part of each head may rotate."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from trtstream.build.families import llama
from trtstream.build.families.family import Family, Layout, decoder_recipes
from trtstream.build.families.partial_rotary import spread
from trtstream.build.families.raw_config import RawConfig
from trtstream.build.recipes import Recipes
from trtstream.settings import ModelConfig

FUSED = {
    "huggingface": {"qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj"},
    "gguf": {"qkv": "attn_qkv", "gate_up": "ffn_up"},
}
"""The names of what is fused; all others are a Llama's."""
DEFAULTS = {
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 32000,
}
"""Of transformers, where they differ from a Llama's."""


def model_config(raw: RawConfig) -> ModelConfig:
    model = llama.model_config(raw.with_defaults(DEFAULTS), partial_rotary=True)
    assert model.rope is not None, "a Llama has RoPE"
    if model.rope.kind not in ("default", "longrope"):
        raise raw.error(f"the RoPE scaling of a Phi-3 is {model.rope.kind}; supported are default and longrope")
    return replace(model, architecture="Phi3ForCausalLM")


def gguf_config(metadata: RawConfig, tensor_names: Collection[str]) -> dict[str, Any]:
    return llama.gguf_config(metadata, tensor_names) | {
        "architectures": ["Phi3ForCausalLM"],
        "original_max_position_embeddings": metadata.get("rope.scaling.original_context_length"),
    }


def recipes(raw: RawConfig, model: ModelConfig, layout: Layout) -> Recipes:
    names, hidden, intermediate = llama.NAMES[layout] | FUSED[layout], model.hidden_size, model.intermediate_size
    q_rows, kv_rows = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim

    def spread_heads(parts: list[torch.Tensor]) -> torch.Tensor:
        q, k, v = parts[0].split((q_rows, kv_rows, kv_rows))
        return torch.cat([spread(q, model), spread(k, model), v])

    def add_layer(tensors: Recipes, layer: str, stored: dict[str, str]) -> None:
        tensors.norm(f"{layer}.attention_norm", stored["attention_norm"], hidden)
        tensors.linear(f"{layer}.qkv", {stored["qkv"]: q_rows + 2 * kv_rows}, hidden, make=spread_heads)
        tensors.linear(f"{layer}.attention_output", {stored["attention_output"]: hidden}, q_rows)
        tensors.norm(f"{layer}.mlp_norm", stored["mlp_norm"], hidden)
        tensors.linear(f"{layer}.gate_up", {stored["gate_up"]: 2 * intermediate}, hidden)
        tensors.linear(f"{layer}.down", {stored["down"]: hidden}, intermediate)

    return decoder_recipes(model, names, add_layer)


FAMILY = Family(
    architectures={"phi3": "Phi3ForCausalLM"},
    model_config=model_config,
    recipes=recipes,
    gguf_architecture="phi3",
    gguf_config=gguf_config,
)
