"""Engines for tests, and the reference's logits for their checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tests.checkpoints import write_checkpoint
from trtstream.build.checkpoint import Checkpoint, open_checkpoint
from trtstream.engine_dir import WEIGHTS, read_engine
from trtstream.plugins.kv_cache import cache_dtype, vectors_to_store
from trtstream.plugins.positions import PositionEncoding, Rotation, rotate
from trtstream.plugins.reference import streaming_attention
from trtstream.runtime.cuda import CudaBackend
from trtstream.runtime.decoder import collect_weights, decode_layers, logits, read_weights
from trtstream.runtime.loading import load_engine
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.settings import BuildConfig
from trtstream.targets import TARGETS

# Small engines for batches: sinks and ring wrap soon, and chunks are shorter than the ring.
RING, MAX_SINKS = 20, 8
SIZES = {
    "max_batch_size": 5,
    "max_attention_window": MAX_SINKS + RING,
    "max_num_tokens": 16,
    "max_sink_token_length": MAX_SINKS,
    "dtype": "float32",
}


def build_variant(folder: Path, variant: str, target: str = "cpu", **settings: object) -> tuple[Checkpoint, Path]:
    """Write the variant's random checkpoint and build its engine; returns the checkpoint and the engine directory."""
    checkpoint = open_checkpoint(write_checkpoint(folder / "checkpoint", variant))
    TARGETS[target].build(checkpoint, BuildConfig(**settings), folder / "engine", lambda done, total: None)
    return checkpoint, folder / "engine"


def random_tokens(count: int, seed: int = 0) -> list[int]:
    """Ids of the variants' vocabulary."""
    return torch.randint(128, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def load_on_cpu(folder: Path, **settings: object) -> StreamingEngine:
    """Load an engine; one for ``cuda`` with ``settings`` onto the CPU, where the definition of its kernels computes."""
    config = read_engine(folder)
    if config.target == "cpu":
        return load_engine(folder)
    model, build = config.pretrained_config, replace(config.build_config, **settings)
    backend = CudaBackend(model, build, read_weights(folder / WEIGHTS, model, torch.device("cpu")))
    return StreamingEngine(model, build, backend)


def reference_logits(
    checkpoint: Checkpoint,
    tokens: list[int],
    sinks: int,
    ring: int,
    *,
    dtype: torch.dtype = torch.float32,
    t: torch.Tensor | None = None,
    kv_dtype: str | None = None,
) -> torch.Tensor:
    """Logits [T, vocab] of a session with the reference's attention; ``t`` numbers its tokens (default 0, 1, ...).

    With ``kv_dtype``, of keys and values as they are after such a cache.
    """
    model = checkpoint.model
    names = set(checkpoint.tensor_names())
    weights = collect_weights(model, names, lambda name: checkpoint.tensor(name).to(dtype), pack=False)
    positions = PositionEncoding.of(model)
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    numbers = torch.arange(len(tokens)) if t is None else t

    def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.view(len(qkv), -1, model.head_dim).split((heads, kv_heads, kv_heads), dim=1)
        if kv_dtype is not None:
            k, v = (_as_cached(x, angles, kv_dtype) for x, angles in ((k, positions.rotation(numbers)), (v, None)))
        rotations = positions.frequencies, positions.scale
        return streaming_attention(q, k, v, sinks, ring, *rotations, t, positions.slopes).flatten(1)

    with torch.inference_mode():
        hidden = decode_layers(weights.embedding[torch.tensor(tokens)], weights, model, attention)
        return logits(hidden, weights, model)


def _as_cached(x: torch.Tensor, rotation: Rotation | None, kv_dtype: str) -> torch.Tensor:
    """Keys or values [T, kv_heads, head_dim] after a cache that is quantized, which keys are rotated in."""
    if rotation is None:
        return vectors_to_store(x, cache_dtype(kv_dtype)).float().to(x.dtype)
    cos, sin = (angles.unsqueeze(1) for angles in rotation)
    cached = vectors_to_store(rotate(x.float(), cos, sin), cache_dtype(kv_dtype)).float()
    return rotate(cached.to(x.dtype), cos, -sin)
