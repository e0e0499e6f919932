"""The KV cache of all sessions: its shape, its bytes, and its layout in memory.

A cache is [sessions, layers, 2 (keys, values), kv_heads, slots, head_dim] in the engine's dtype. So ``cache[i]`` is
session i's, to be read and written in place. `trtstream.plugins.window.Window` says which slots hold which tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trtstream.settings import DTYPE_BYTES, BuildConfig, ModelConfig
from trtstream.targets import TARGETS

if TYPE_CHECKING:
    import torch


def cache_slots(model: ModelConfig, build: BuildConfig, target: str) -> int:
    """Slots of a session's cache: S_max for sinks and R for the ring; where a target writes first, more than T others.

    Of those the last is a scratch slot that no query sees, and the rest are the ring's (see `spare_slots`).
    """
    if not TARGETS[target].writes_first:
        return build.max_attention_window
    # TensorRT takes addresses that are multiples of 256 bytes, and a call may begin at any session's cache.
    bytes_per_slot = model.num_key_value_heads * model.head_dim * DTYPE_BYTES[build.dtype]
    multiple = 256 // math.gcd(256, bytes_per_slot)
    return math.ceil((build.max_attention_window + build.max_num_tokens) / multiple) * multiple


def spare_slots(model: ModelConfig, build: BuildConfig, target: str) -> int:
    """Ring slots beyond R: T - 1 or more where a chunk of up to T tokens overwrites others before it attends."""
    if not TARGETS[target].writes_first:
        return 0
    return cache_slots(model, build, target) - build.max_attention_window - 1


def kv_bytes_per_session(model: ModelConfig, build: BuildConfig, target: str) -> int:
    """Bytes of KV cache that one session owns, however long its conversation gets."""
    values = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim
    return values * cache_slots(model, build, target) * DTYPE_BYTES[build.dtype]


def new_cache(model: ModelConfig, build: BuildConfig, target: str, device: torch.device) -> torch.Tensor:
    """A cache of zeros for all sessions.

    In memory a session is contiguous, so that exporting it is one copy. Where the target writes first, the keys (or
    values) of a layer are contiguous instead, for one session or for the first B: TensorRT binds them as they are.
    """
    import torch

    from trtstream.plugins.huge_pages import new_memory

    slots = cache_slots(model, build, target)
    shape = (build.max_batch_size, model.num_hidden_layers, 2, model.num_key_value_heads, slots, model.head_dim)
    nbytes = math.prod(shape) * DTYPE_BYTES[build.dtype]
    memory = new_memory(nbytes) if device.type == "cpu" else torch.zeros(nbytes, dtype=torch.uint8, device=device)
    values = memory.view(getattr(torch, build.dtype))
    if not TARGETS[target].writes_first:
        return values.view(shape)
    sessions, layers, pair, *of_session = shape
    return values.view(layers, pair, sessions, *of_session).movedim(2, 0)
