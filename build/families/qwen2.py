"""The Qwen2 family, which Qwen2.5 is of too: Llamas with biases on query, key and value."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from trtstream.build.families import llama
from trtstream.build.families.family import Family, Layout
from trtstream.build.families.raw_config import RawConfig
from trtstream.build.recipes import Recipes
from trtstream.settings import ModelConfig

DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""Of transformers, where they differ from a Llama's."""


def model_config(raw: RawConfig) -> ModelConfig:
    return replace(llama.model_config(raw.with_defaults(DEFAULTS)), architecture="Qwen2ForCausalLM")


def gguf_config(metadata: RawConfig, tensor_names: Collection[str]) -> dict[str, Any]:
    return llama.gguf_config(metadata, tensor_names) | {
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": metadata.get("attention.sliding_window") is not None,
        "max_window_layers": 0,
    }


def recipes(raw: RawConfig, model: ModelConfig, layout: Layout) -> Recipes:
    return llama.gated_recipes(model, layout, biased={"qkv"}, adjacent_pairs=False)


FAMILY = Family(
    architectures={"qwen2": "Qwen2ForCausalLM"},
    model_config=model_config,
    recipes=recipes,
    gguf_architecture="qwen2",
    gguf_config=gguf_config,
)
