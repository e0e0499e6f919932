"""The Mistral family: Llamas that may have been trained with a sliding window. Their .gguf files call them Llamas."""

from __future__ import annotations

from dataclasses import replace

from trtstream.build.families import llama
from trtstream.build.families.family import Family
from trtstream.build.families.raw_config import RawConfig
from trtstream.settings import ModelConfig

DEFAULTS = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}
"""Of transformers, where they differ from a Llama's."""


def model_config(raw: RawConfig) -> ModelConfig:
    return replace(llama.model_config(raw.with_defaults(DEFAULTS)), architecture="MistralForCausalLM")


FAMILY = Family(
    architectures={"mistral": "MistralForCausalLM"},
    model_config=model_config,
    recipes=llama.recipes,
)
