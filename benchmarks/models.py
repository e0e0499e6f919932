"""The models that are measured: published sizes, random weights made on the device, and the bytes that a step reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from trtstream.plugins.kv_cache import kv_bytes_per_session
from trtstream.plugins.quantized_weight import quantize
from trtstream.runtime.decoder import DecoderWeights, collect_weights
from trtstream.settings import DTYPE_BYTES, BuildConfig, ModelConfig, RopeConfig


def llama(
    vocab: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, *, theta: float, tied: bool
) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=4096,
        norm="rms",
        norm_eps=1e-5,
        hidden_act="silu",
        gated_mlp=True,
        residual="sequential",
        shared_norm=False,
        tie_word_embeddings=tied,
        rope=RopeConfig(theta=theta),
        bos_token_id=None,
        eos_token_ids=(),
    )


def falcon(vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, *, alibi: bool = False) -> ModelConfig:
    return ModelConfig(
        architecture="FalconForCausalLM",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=4096,
        norm="layer",
        norm_eps=1e-5,
        hidden_act="gelu",
        gated_mlp=False,
        residual="sequential" if alibi else "parallel",
        shared_norm=not alibi,
        tie_word_embeddings=True,
        rope=None if alibi else RopeConfig(),
        bos_token_id=None,
        eos_token_ids=(),
    )


SMOLLM2 = llama(49152, 576, 1536, 30, 9, 3, theta=100_000.0, tied=True)
TINYLLAMA = llama(32000, 2048, 5632, 22, 32, 4, theta=10_000.0, tied=False)
LLAMA_2_7B = llama(32000, 4096, 11008, 32, 32, 32, theta=10_000.0, tied=False)
FALCON_7B = falcon(65024, 4544, 32, 71, 1)
TINY_LLAMA = llama(128, 64, 128, 2, 4, 2, theta=10_000.0, tied=False)
TINY_FALCON = falcon(128, 80, 2, 5, 1)
TINY_FALCON_RW = falcon(128, 128, 2, 8, 8, alibi=True)


def tensor_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model, as an engine's weights file has them (Falcon: norms with biases)."""
    hidden, intermediate = model.hidden_size, model.intermediate_size
    attended = model.num_attention_heads * model.head_dim
    projections: dict[str, tuple[int, int]] = {
        "qkv": (attended + 2 * model.num_key_value_heads * model.head_dim, hidden),
        "attention_output": (hidden, attended),
        "gate_up" if model.gated_mlp else "up": (intermediate * (2 if model.gated_mlp else 1), hidden),
        "down": (hidden, intermediate),
    }
    norms = ["attention_norm"] if model.shared_norm else ["attention_norm", "mlp_norm"]
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (model.vocab_size, hidden)}
    if not model.tie_word_embeddings:
        shapes["lm_head.weight"] = (model.vocab_size, hidden)
    layers = [f"layers.{i}" for i in range(model.num_hidden_layers)]
    shapes |= {f"{layer}.{name}.weight": shape for layer in layers for name, shape in projections.items()}
    for norm in ["norm", *(f"{layer}.{name}" for layer in layers for name in norms)]:
        shapes[f"{norm}.weight"] = (hidden,)
        if model.norm == "layer":
            shapes[f"{norm}.bias"] = (hidden,)
    return shapes


Reader = Callable[[str], torch.Tensor]
"""The tensor of a name: see `tensor_shapes`."""


def random_tensors(model: ModelConfig, dtype: torch.dtype, device: torch.device, std: float = 0.02) -> Reader:
    """A reader of random tensors by name, the same for the same name; norm weights lie around 1."""
    shapes = tensor_shapes(model)
    seeds = {name: seed for seed, name in enumerate(shapes)}

    def read(name: str) -> torch.Tensor:
        generator = torch.Generator(device).manual_seed(seeds[name])
        tensor = torch.empty(shapes[name], dtype=dtype, device=device).normal_(0.0, std, generator=generator)
        return tensor + 1 if name.endswith("norm.weight") else tensor

    return read


def random_weights(model: ModelConfig, dtype: torch.dtype, device: torch.device, std: float = 0.02) -> DecoderWeights:
    """Random weights of the model's sizes, made where they stay. A large ``std`` lets small mistakes show."""
    return weights_from(model, random_tensors(model, dtype, device, std))


def weights_from(model: ModelConfig, read: Reader) -> DecoderWeights:
    return collect_weights(model, set(tensor_shapes(model)), read, pack=False)


def weight_bytes(model: ModelConfig, dtype: str) -> int:
    """Bytes of all weights."""
    return sum(math.prod(shape) for shape in tensor_shapes(model).values()) * DTYPE_BYTES[dtype]


def step_bytes(model: ModelConfig, build: BuildConfig, weights: DecoderWeights, batch: int) -> int:
    """Bytes that a decode step of ``batch`` full sessions must read; over the bandwidth, the floor of its time.

    Every weight once, but of the embedding only the tokens' rows; and the C keys and values that each session sees in
    each layer.
    """
    embedded = batch * model.hidden_size * weights.embedding.element_size()
    visible = build.sink_token_length + build.ring
    cache = batch * kv_bytes_per_session(model, build, "cuda") * visible // build.max_attention_window
    return _bytes_of((weights.layers, weights.norm, weights.lm_head)) + embedded + cache


def _bytes_of(value: Any) -> int:
    """Bytes of the tensors in lists and dataclasses."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    return sum(map(_bytes_of, value)) if isinstance(value, list | tuple) else 0


def quantized(weights: DecoderWeights, quantization: str) -> DecoderWeights:
    """The same weights with every projection of the layers as ``int8`` or ``int4``."""
    layers = []
    for layer in weights.layers:
        projections = {name: getattr(layer, name) for name in ("qkv", "attention_output", "up", "down")}
        changed = {
            name: replace(found, weight=quantize(found.weight, quantization, found.weight.dtype))
            for name, found in projections.items()
        }
        layers.append(replace(layer, **changed))
    return replace(weights, layers=layers)
