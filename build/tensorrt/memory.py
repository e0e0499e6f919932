"""The memory that TensorRT takes: to run an engine, and to build it."""

from __future__ import annotations

from trtstream.build.checkpoint import Checkpoint
from trtstream.build.memory import MemoryEstimate, memory_estimate
from trtstream.build.tensorrt.weights import tensorrt_weights
from trtstream.plugins.kv_cache import cache_slots
from trtstream.settings import DTYPE_BYTES, BuildConfig, ModelConfig


def tensorrt_memory(target: str, checkpoint: Checkpoint, build: BuildConfig) -> MemoryEstimate:
    """See `trtstream.build.memory.estimate_memory`."""
    model, weights = checkpoint.model, tensorrt_weights(checkpoint, build).nbytes
    peak = builder_peak(model, weights)
    return memory_estimate(checkpoint, build, target, weights, peak, workspace_bytes(model, build, target))


def workspace_bytes(model: ModelConfig, build: BuildConfig, target: str) -> int:
    """An estimate for an engine's largest call: T tokens of one session, or one of each of B sessions.

    It grows with attention's masks [rows, heads, C], of which three live at once (visibility, a layer's correction and
    their sum; ALiBi has no correction), with the widest activations [rows, columns], twice, and with the logits
    [rows, vocab] in float32. TensorRT-RTX's builder reports 0.6 to 1 times this for small models with windows of 512 to
    1024 and chunks of 256 to 512 tokens, of which 8 MiB are fixed.
    """
    rows = max(build.max_num_tokens, build.max_batch_size)
    masks = 3 * rows * model.num_attention_heads * cache_slots(model, build, target)
    activations = 2 * rows * model.intermediate_size * (2 if model.gated_mlp else 1)
    return 8 * 2**20 + (masks + activations) * DTYPE_BYTES[build.dtype] + 4 * rows * model.vocab_size


def builder_peak(model: ModelConfig, weights: int) -> int:
    """An estimate of the peak memory of a build of ``weights`` bytes, mapped files included.

    TensorRT's builder takes 0.4 GB, three times the weights, of which one is a mapped file that the kernel may drop,
    and 25 MB a layer. TensorRT-RTX 1.7 took within a fifth of that for SmolLM2 (30 layers; 6 and 12 of them) in
    float16, float32, int8 and int4, and for four layers as large as a 1B model's.
    """
    return int(4e8 + 3 * weights + 2.5e7 * model.num_hidden_layers)
