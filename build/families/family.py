"""What a model family is, and what the checkpoints of all families have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trtstream.build.families.raw_config import RawConfig
from trtstream.build.recipes import Recipes
from trtstream.settings import ModelConfig

Layout = Literal["huggingface", "gguf"]


@dataclass(frozen=True)
class Family:
    """All that is known of a family: how its config reads, and how its tensors are named and laid out.

    ``architectures`` are transformers' class names by ``model_type``, for configs that name no class. ``gguf_config``
    takes a GGUF file's metadata (``gguf_architecture`` removed from their names) and tensor names, and returns what the
    family adds to `trtstream.build.gguf_file`'s common part of a config in Hugging Face's spelling. All three functions
    raise TrtstreamError for what cannot be computed.
    """

    architectures: Mapping[str, str]
    model_config: Callable[[RawConfig], ModelConfig]
    recipes: Callable[[RawConfig, ModelConfig, Layout], Recipes]
    gguf_architecture: str
    gguf_config: Callable[[RawConfig, Collection[str]], dict[str, Any]]


def outer_recipes(model: ModelConfig, names: Mapping[str, str]) -> Recipes:
    """Recipes of what lies around the layers; ``names`` are the checkpoint's, less ``.weight``, by ours."""
    recipes = Recipes()
    recipes.linear("embedding", {names["embedding"]: model.vocab_size}, model.hidden_size)
    recipes.norm("norm", names["norm"], model.hidden_size, bias=model.norm == "layer")
    if not model.tie_word_embeddings:
        recipes.linear("lm_head", {names["lm_head"]: model.vocab_size}, model.hidden_size)
    return recipes


def layer_names(model: ModelConfig, names: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """For each layer its canonical name, and ``names`` with the checkpoint's name of that layer before each."""
    for i in range(model.num_hidden_layers):
        yield f"layers.{i}", {role: f"{names['layer']}.{i}.{name}" for role, name in names.items()}
