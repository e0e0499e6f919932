"""The state of one session outside an engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class SessionState:
    """A session: its position, the ids that its cache can be rebuilt from, and the cache itself where it is at hand.

    ``token_ids`` are the session's sinks followed by its last ``L * (R - 1) + 1`` tokens (fewer when it is young):
    enough to rebuild the cache on any engine of the same checkpoint and window, because the receptive field grows by
    R - 1 tokens a layer. ``kv_cache`` [layers, 2, kv_heads, slots, head_dim], on the CPU, is the cache as the engine
    that exported it has it, or None.
    """

    sink_token_length: int
    position: int
    token_ids: list[int]
    kv_cache: torch.Tensor | None = None
