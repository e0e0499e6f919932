"""The description of a model family, and the part of a decoder's recipes that all families share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trtstream.build.families.raw_config import RawConfig
from trtstream.build.recipes import Recipes
from trtstream.errors import TrtstreamError
from trtstream.settings import ModelConfig
from trtstream.typed_json import from_json

Layout = Literal["huggingface", "gguf"]

GGUF_NAMES = {
    "embedding": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "layer": "blk",
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "qkv": "attn_qkv",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "attention_output": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
"""A .gguf file's names by the roles of `decoder_recipes`, which most families share."""


@dataclass(frozen=True)
class Family:
    """All that is known of a family: how its config reads, and how its tensors are named and laid out.

    ``architectures`` are transformers' class names by ``model_type``, for configs that name no class. ``gguf_config``
    takes a GGUF file's metadata (``gguf_architecture`` removed from their names) and tensor names, and returns what the
    family adds to `trtstream.build.gguf_file`'s common part of a config in Hugging Face's spelling; both are None where
    .gguf files call its models by another family's name. All three functions raise TrtstreamError for what cannot be
    computed.
    """

    architectures: Mapping[str, str]
    model_config: Callable[[RawConfig], ModelConfig]
    recipes: Callable[[RawConfig, ModelConfig, Layout], Recipes]
    gguf_architecture: str | None = None
    gguf_config: Callable[[RawConfig, Collection[str]], dict[str, Any]] | None = None

    def read_model(self, raw: RawConfig) -> ModelConfig:
        """The model of a config. Raises TrtstreamError for one that an engine's config.json would be refused for."""
        model = self.model_config(raw)
        try:
            from_json(ModelConfig, model.to_dict(), "the model").validate()
        except TrtstreamError as error:
            raise raw.error(str(error)) from None
        return model


def decoder_recipes(
    model: ModelConfig,
    names: Mapping[str, str],
    add_layer: Callable[[Recipes, str, dict[str, str]], None],
    norm_bias: bool = True,
) -> Recipes:
    """The recipes of a decoder: embedding, layers, last norm, and output projection unless it is tied.

    ``names`` are the checkpoint's names, less ``.weight``, by the family's roles. ``add_layer(recipes, name, stored)``
    adds the recipes of the layer with the canonical ``name``; ``stored`` are ``names`` within that layer.
    ``norm_bias``: whether the last norm has a bias, if it is a LayerNorm.
    """
    recipes = Recipes()
    recipes.linear("embedding", {names["embedding"]: model.vocab_size}, model.hidden_size)
    for i in range(model.num_hidden_layers):
        add_layer(recipes, f"layers.{i}", {role: f"{names['layer']}.{i}.{name}" for role, name in names.items()})
    recipes.norm("norm", names["norm"], model.hidden_size, bias=model.norm == "layer" and norm_bias)
    if not model.tie_word_embeddings:
        recipes.linear("lm_head", {names["lm_head"]: model.vocab_size}, model.hidden_size)
    return recipes
