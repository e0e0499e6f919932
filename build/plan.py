"""The memory that an engine and its build will take, worked out before anything is read or built."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trtstream.build.checkpoint import Checkpoint
from trtstream.build.cuda import cuda_weights
from trtstream.build.engine_weights import EngineWeights
from trtstream.build.tensorrt.weights import tensorrt_weights
from trtstream.build.tensorrt_llm.sharding import check_parallel_sizes, pieces
from trtstream.plugins.kv_cache import cache_slots, kv_bytes_per_session
from trtstream.plugins.tensorrt_library import LIBRARIES
from trtstream.settings import DTYPE_BYTES, BuildConfig


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes. ``workspace`` is what a call computes in (None: not known for this target); ``build`` is of the building
    machine's memory. Both are estimates, the others are exact."""

    weights: int
    kv_cache_per_session: int
    sessions: int
    workspace: int | None
    build: int

    @property
    def total(self) -> int:
        return self.weights + (self.workspace or 0) + self.sessions * self.kv_cache_per_session

    def sessions_in(self, memory: int) -> int:
        """How many sessions fit into so many bytes beside weights and workspace, which hardly grows with them."""
        return max(memory - self.weights - (self.workspace or 0), 0) // self.kv_cache_per_session


def plan_memory(checkpoint: Checkpoint, build: BuildConfig, target: str) -> MemoryPlan:
    """Plan an engine. Reads no tensor and needs neither a GPU nor a target's libraries.

    Raises TrtstreamError for sizes that the target cannot divide or quantize.
    """
    weights = _weights_bytes(checkpoint, build, target)
    return MemoryPlan(
        weights=weights,
        kv_cache_per_session=kv_bytes_per_session(checkpoint.model, build, target),
        sessions=build.max_batch_size,
        workspace=_workspace_bytes(checkpoint, build, target),
        build=_build_bytes(checkpoint, weights, target),
    )


def _weights_bytes(checkpoint: Checkpoint, build: BuildConfig, target: str) -> int:
    """Of the tensors as they are stored, which for tensorrt-llm is before ``trtllm-build`` quantizes them."""
    dtype = getattr(torch, build.dtype)
    if target == "tensorrt-llm":
        check_parallel_sizes(checkpoint.model, build.tp_size, build.pp_size)
        placed = pieces(checkpoint.model, checkpoint.tensor_names(), build.tp_size, build.pp_size)
        blank = {name: checkpoint.blank_tensor(name).to(dtype) for name in placed}
        return sum(piece.of(blank[name]).nbytes for name, parts in placed.items() for piece in parts)
    if target in LIBRARIES:
        weights = tensorrt_weights(checkpoint, build)
    else:
        weights = cuda_weights(checkpoint, build) if target == "cuda" else EngineWeights(checkpoint, dtype)
    return sum(tensor.nbytes for tensor in weights.blank().values())


def _workspace_bytes(checkpoint: Checkpoint, build: BuildConfig, target: str) -> int | None:
    """An estimate for a plan's largest call: T tokens of one session, or one of each of B sessions.

    What grows are the masks [rows, heads, C] of attention, of which three live at once (what is visible, a layer's own
    correction and their sum; ALiBi has no correction), the widest activations [rows, columns], twice, and the logits
    [rows, vocab] in float32. TensorRT-RTX's builder reports 0.6 to 1 times this for small models with windows of 512 to
    1024 and chunks of 256 to 512 tokens, of which 8 MiB are fixed.
    """
    if target not in LIBRARIES:
        return None
    model, rows = checkpoint.model, max(build.max_num_tokens, build.max_batch_size)
    masks = 3 * rows * model.num_attention_heads * cache_slots(model, build, target)
    activations = 2 * rows * model.intermediate_size * (2 if model.gated_mlp else 1)
    return 8 * 2**20 + (masks + activations) * DTYPE_BYTES[build.dtype] + 4 * rows * model.vocab_size


def _build_bytes(checkpoint: Checkpoint, weights: int, target: str) -> int:
    """An estimate of the peak memory of a build, mapped files included.

    0.4 GB and three times the largest tensor in float32 (measured: 2.7 and 3.1 times). TensorRT's builder takes 0.4 GB,
    three times the weights, of which one is a mapped file that the kernel may drop, and 25 MB a layer. That is within
    a fifth of what TensorRT-RTX 1.7 took for SmolLM2 (30 layers; 6 and 12 of them) in float16, float32, int8 and int4,
    and for four layers as large as a 1B model's.
    """
    if target in LIBRARIES:
        return int(4e8 + 3 * weights + 2.5e7 * checkpoint.model.num_hidden_layers)
    return int(4e8 + 12 * max(checkpoint.blank_tensor(name).numel() for name in checkpoint.tensor_names()))
