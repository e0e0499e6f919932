"""Recipes: how each canonical tensor of a model is made from the tensors that a checkpoint stores.

Canonical names, with V = vocab_size, E = hidden_size, F = intermediate_size, H attention and G key-value heads of D:

* ``embedding.weight`` [V, E], ``norm.weight`` [E], ``lm_head.weight`` [V, E] (absent from a tied model);
* in layer i, after ``layers.{i}.``: ``attention_norm.weight`` [E]; ``qkv.weight`` [(H + 2 * G) * D, E], rows: all query
  heads, all key heads, all value heads, rotary dimensions in Hugging Face's half-split order;
  ``q_norm.weight`` and ``k_norm.weight`` [D] (only with ``qk_norm``), each for all heads;
  ``attention_output.weight`` [E, H * D]; ``mlp_norm.weight`` [E] (absent where ``shared_norm``);
  ``gate_up.weight`` [2 * F, E] (gate rows, then up rows) or, without a gate, ``up.weight`` [F, E];
  ``down.weight`` [E, F].

LayerNorms, and linear layers where the checkpoint has them, also have a ``.bias`` of as many elements as weight rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

# Rotary frequencies and causal masks, which the config determines (GGUF's config is read from its frequencies).
NOT_WEIGHTS = re.compile(
    r"\.(rotary_emb|maybe_rotary)\.inv_freq$|^rope_(freqs|factors_(long|short))\.weight$|\.attention\.(bias|masked_bias)$"
)
"""Names of tensors that some checkpoints store although no model computes with them."""

Make = Callable[[list[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """``make`` turns the stored tensors that ``sources`` names (with the shapes they must have), in order, into one."""

    sources: dict[str, tuple[int, ...]]
    make: Make


class Recipes(dict[str, Recipe]):
    """Recipes by canonical name. ``make`` works on rows, so that one serves a weight and its bias."""

    def linear(
        self, name: str, parts: Mapping[str, int], columns: int, *, bias: bool = False, make: Make = torch.cat
    ) -> None:
        """A linear layer made of ``parts``: names in the checkpoint, less ``.weight``, and the rows that each has."""
        self[f"{name}.weight"] = Recipe({f"{part}.weight": (rows, columns) for part, rows in parts.items()}, make)
        if bias:
            self[f"{name}.bias"] = Recipe({f"{part}.bias": (rows,) for part, rows in parts.items()}, make)

    def norm(self, name: str, part: str, size: int, *, bias: bool = False) -> None:
        self[f"{name}.weight"] = Recipe({f"{part}.weight": (size,)}, torch.cat)
        if bias:
            self[f"{name}.bias"] = Recipe({f"{part}.bias": (size,)}, torch.cat)
