"""The Qwen3 family: Llamas whose queries and keys are normalized, each head by itself, before they are rotated."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from trtstream.build.families import llama, qwen2
from trtstream.build.families.family import Family, Layout
from trtstream.build.families.raw_config import RawConfig
from trtstream.build.recipes import Recipes
from trtstream.settings import ModelConfig

DEFAULTS = qwen2.DEFAULTS | {"head_dim": 128}
"""Of transformers, where they differ from a Llama's."""


def model_config(raw: RawConfig) -> ModelConfig:
    model = llama.model_config(raw.with_defaults(DEFAULTS))
    return replace(model, architecture="Qwen3ForCausalLM", qk_norm=True)


def gguf_config(metadata: RawConfig, tensor_names: Collection[str]) -> dict[str, Any]:
    return qwen2.gguf_config(metadata, tensor_names) | {"architectures": ["Qwen3ForCausalLM"]}


def recipes(raw: RawConfig, model: ModelConfig, layout: Layout) -> Recipes:
    biased = {"qkv", "attention_output"} if raw.flag("attention_bias", False) else set()
    return llama.gated_recipes(model, layout, biased, adjacent_pairs=False)


FAMILY = Family(
    architectures={"qwen3": "Qwen3ForCausalLM"},
    model_config=model_config,
    recipes=recipes,
    gguf_architecture="qwen3",
    gguf_config=gguf_config,
)
