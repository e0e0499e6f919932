"""The KV cache of all sessions: its shape, its bytes, its layout in memory, and how it is quantized.

A cache is [sessions, layers, 2 (keys, values), kv_heads, slots, head_dim] in the engine's dtype. So ``cache[i]`` is
session i's, to be read and written in place. `trtstream.plugins.window.Window` says which slots hold which tokens.

With ``kv_dtype`` each key and each value of a head has a scale of its own (float32), by which its 8-bit numbers are
multiplied: its largest magnitude over the largest of the format. So what is stored of a token depends on that token
alone. The scale's bytes make the last dimension of the cache ``head_dim + 4``, but in memory a layer has its vectors
first, densely, and then its scales: loads of vectors stay aligned. `stored_vectors` returns both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtstream.settings import DTYPE_BYTES, BuildConfig, ModelConfig
from trtstream.targets import TARGETS

if TYPE_CHECKING:
    import torch

SCALE_BYTES = 4
SMALLEST = 1e-30  # the largest magnitude that a vector of zeros is taken to have


def cache_slots(model: ModelConfig, build: BuildConfig, target: str) -> int:
    """Slots of a session's cache: S_max for sinks and R for the ring; where a target writes first, more than T others.

    Of those the last is a scratch slot that no query sees, and the rest are the ring's (see `spare_slots`).
    """
    if not TARGETS[target].writes_first:
        return build.max_attention_window
    # TensorRT takes addresses that are multiples of 256 bytes, and a call may begin at any session's cache.
    bytes_per_slot = model.num_key_value_heads * _vector_bytes(model, build)
    multiple = 256 // math.gcd(256, bytes_per_slot)
    return math.ceil((build.max_attention_window + build.max_num_tokens) / multiple) * multiple


def spare_slots(model: ModelConfig, build: BuildConfig, target: str) -> int:
    """Ring slots beyond R: T - 1 or more where a chunk of up to T tokens overwrites others before it attends."""
    if not TARGETS[target].writes_first:
        return 0
    return cache_slots(model, build, target) - build.max_attention_window - 1


def kv_bytes_per_session(model: ModelConfig, build: BuildConfig, target: str) -> int:
    """Bytes of KV cache that one session owns, however long its conversation gets."""
    vectors = 2 * model.num_hidden_layers * model.num_key_value_heads * cache_slots(model, build, target)
    return vectors * _vector_bytes(model, build)


def _vector_bytes(model: ModelConfig, build: BuildConfig) -> int:
    """Bytes of a key or a value of one head."""
    if build.kv_dtype is not None:
        return model.head_dim + SCALE_BYTES
    return model.head_dim * DTYPE_BYTES[build.dtype]


def cache_dtype(name: str) -> torch.dtype:
    """The dtype of a cache's tensor: of ``kv_dtype``, or of the engine's ``dtype``."""
    import torch

    return getattr(torch, "float8_e4m3fn" if name == "fp8" else name)


def new_cache(model: ModelConfig, build: BuildConfig, target: str, device: torch.device) -> torch.Tensor:
    """A cache of zeros for all sessions.

    In memory a session is contiguous, so that exporting it is one copy. Where the target writes first, the keys (or
    values) of a layer are contiguous instead, for one session or for the first B: TensorRT binds them as they are.
    """
    import torch

    from trtstream.plugins.huge_pages import new_memory

    nbytes = kv_bytes_per_session(model, build, target) * build.max_batch_size
    memory = new_memory(nbytes) if device.type == "cpu" else torch.zeros(nbytes, dtype=torch.uint8, device=device)
    values = memory.view(cache_dtype(build.kv_dtype or build.dtype))
    sessions, layers, slots = build.max_batch_size, model.num_hidden_layers, cache_slots(model, build, target)
    of_layer = (model.num_key_value_heads, slots, _vector_bytes(model, build) // values.element_size())
    if not TARGETS[target].writes_first:
        return values.view(sessions, layers, 2, *of_layer)
    return values.view(layers, 2, sessions, *of_layer).movedim(2, 0)


@dataclass(frozen=True)
class Vectors:
    """Keys and values as a cache stores them: ``numbers`` [..., head_dim], and with ``kv_dtype`` ``scales`` [...].

    They are indexed without head_dim: ``vectors[..., slots]``. Those of a cache are views of it.
    """

    numbers: torch.Tensor
    scales: torch.Tensor | None

    def __getitem__(self, index: tuple[Any, ...]) -> Vectors:
        whole = (*index, slice(None))
        return Vectors(self.numbers[whole], None if self.scales is None else self.scales[index])

    def __setitem__(self, index: tuple[Any, ...], vectors: Vectors) -> None:
        whole = (*index, slice(None))
        self.numbers[whole] = vectors.numbers
        if self.scales is not None and vectors.scales is not None:
            self.scales[index] = vectors.scales

    def float(self) -> torch.Tensor:
        """The vectors themselves [..., head_dim], float32."""
        return self.numbers.float() if self.scales is None else self.numbers.float() * self.scales.unsqueeze(-1)

    def to(self, device: torch.device) -> Vectors:
        """A copy there: into pinned memory if it is a GPU's, and complete once its stream has come there."""
        scales = None if self.scales is None else self.scales.to(device, non_blocking=True)
        return Vectors(self.numbers.to(device, non_blocking=True), scales)


def stored_vectors(cache: torch.Tensor) -> Vectors:
    """The vectors [..., 2, kv_heads, slots] of a cache, of some of its sessions and layers, or of one: views."""
    import torch

    if cache.element_size() > 1:
        return Vectors(cache, None)
    pair, kv_heads, slots, width = cache.shape[-4:]
    of_layer, head_dim = (pair, kv_heads, slots), width - SCALE_BYTES
    numbers, scales = cache.flatten(-4).tensor_split((pair * kv_heads * slots * head_dim,), dim=-1)
    return Vectors(numbers.unflatten(-1, (*of_layer, head_dim)), scales.view(torch.float32).unflatten(-1, of_layer))


def vectors_to_store(vectors: torch.Tensor, dtype: torch.dtype) -> Vectors:
    """Float vectors [..., head_dim] as a cache of ``dtype`` stores them; quantized from float32."""
    import torch

    if dtype.itemsize > 1:
        return Vectors(vectors.to(dtype), None)
    vectors = vectors.float()
    largest = (torch.finfo if dtype.is_floating_point else torch.iinfo)(dtype).max
    scales = vectors.abs().amax(dim=-1).clamp(min=SMALLEST) / largest
    scaled = vectors / scales.unsqueeze(-1)
    return Vectors((scaled if dtype.is_floating_point else (scaled + 0.5).floor()).to(dtype), scales)


def head_dim(cache: torch.Tensor) -> int:
    """The head_dim of a cache, of some of its sessions and layers, or of one."""
    return cache.shape[-1] - (SCALE_BYTES if cache.element_size() == 1 else 0)
