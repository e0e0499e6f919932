"""Heads of which a part rotates, in the order in which every kernel rotates all of a head."""

from __future__ import annotations

import torch

from trtstream.settings import ModelConfig


def spread(rows: torch.Tensor, model: ModelConfig) -> torch.Tensor:
    """The rows (or biases) of queries or keys [heads * head_dim, ...], whose rotating dimensions are each head's first.

    Kernels rotate pairs half a head apart. So each half gets one of every pair that rotates, then half of the
    dimensions that do not, whose frequency is zero. Queries and keys in one order have the products that they had.
    """
    rotary_dim = None if model.rope is None else model.rope.rotary_dim
    if rotary_dim is None:
        return rows
    pair, passed = rotary_dim // 2, (model.head_dim - rotary_dim) // 2
    first, second, rest, last = rows.unflatten(0, (-1, model.head_dim)).split((pair, pair, passed, passed), dim=1)
    return torch.cat((first, rest, second, last), dim=1).flatten(0, 1)
