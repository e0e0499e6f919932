"""The models that are measured: published sizes, random weights made on the device, and the bytes that a step reads."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from trtstream.build.families import ARCHITECTURES
from trtstream.build.families.raw_config import RawConfig
from trtstream.build.recipes import Recipes
from trtstream.plugins.block_weight import BlockWeight
from trtstream.plugins.kv_cache import kv_bytes_per_session
from trtstream.plugins.quantized_weight import quantize
from trtstream.runtime.decoder import DecoderWeights, collect_weights
from trtstream.settings import DTYPE_BYTES, BuildConfig, ModelConfig


def _model(architecture: str, vocab: int, hidden: int, layers: int, heads: int, **others: Any) -> ModelConfig:
    """A model without biases, from a config in Hugging Face's spelling."""
    sizes = {"vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes["max_position_embeddings"] = 4096
    return ARCHITECTURES[architecture].model_config(RawConfig(architecture, sizes | others))


def llama(
    vocab: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, *, theta: float, tied: bool
) -> ModelConfig:
    others = {"intermediate_size": intermediate, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5}
    return _model(
        "LlamaForCausalLM", vocab, hidden, layers, heads, rope_theta=theta, tie_word_embeddings=tied, **others
    )


def falcon(vocab: int, hidden: int, layers: int, heads: int, *, rw: bool = False) -> ModelConfig:
    """One key-value head and a parallel MLP, as Falcon-7B; or ``rw``: multi-head, sequential, ALiBi."""
    return _model("FalconForCausalLM", vocab, hidden, layers, heads, alibi=rw, multi_query=not rw, parallel_attn=not rw)


SMOLLM2 = llama(49152, 576, 1536, 30, 9, 3, theta=100_000.0, tied=True)
TINYLLAMA = llama(32000, 2048, 5632, 22, 32, 4, theta=10_000.0, tied=False)
LLAMA_2_7B = llama(32000, 4096, 11008, 32, 32, 32, theta=10_000.0, tied=False)
LLAMA_3_8B = llama(128256, 4096, 14336, 32, 32, 8, theta=500_000.0, tied=False)
FALCON_7B = falcon(65024, 4544, 32, 71)
FALCON_RW_1B = falcon(50304, 2048, 24, 32, rw=True)
TINY_LLAMA = llama(128, 64, 128, 2, 4, 2, theta=10_000.0, tied=False)
TINY_FALCON = falcon(128, 80, 2, 5)
TINY_FALCON_RW = falcon(128, 128, 2, 8, rw=True)


def recipes(model: ModelConfig) -> Recipes:
    """The recipes of the model's tensors, by name."""
    return ARCHITECTURES[model.architecture].recipes(RawConfig(model.architecture, {}), model, "huggingface")


@dataclass(frozen=True)
class RandomCheckpoint:
    """Random weights in the place of a `trtstream.build.checkpoint.Checkpoint`, the same for the same name.

    They are made on ``device``. Norm weights lie around 1. A large ``std`` lets small mistakes show.
    """

    model: ModelConfig
    dtype: torch.dtype
    device: torch.device
    std: float = 0.02

    @cached_property
    def recipes(self) -> Recipes:
        return recipes(self.model)

    def fingerprint(self) -> str:
        """A digest of what determines the weights, as `Checkpoint.fingerprint` is one of a checkpoint's files."""
        return sha256(repr((self.model, self.dtype, self.std)).encode()).hexdigest()

    def tensor_names(self) -> list[str]:
        return list(self.recipes)

    def blank_tensor(self, name: str) -> torch.Tensor:
        recipe = self.recipes[name]
        return recipe.make([torch.empty(shape, device="meta") for shape in recipe.sources.values()])

    def random_tensor(self, name: str) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(self.tensor_names().index(name))
        shape = self.blank_tensor(name).shape
        tensor = torch.empty(shape, dtype=self.dtype, device=self.device).normal_(0.0, self.std, generator=generator)
        return tensor + 1 if name.endswith("norm.weight") else tensor

    def tensor(self, name: str) -> torch.Tensor:
        return self.random_tensor(name).cpu()

    def save_tokenizer(self, folder: Path) -> bool:
        return False

    def weights(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> DecoderWeights:
        """The weights to compute with, where and as they were made, or on another device, in another dtype."""
        device, dtype = device or self.device, dtype or self.dtype
        names = set(self.tensor_names())
        return collect_weights(self.model, names, lambda name: self.random_tensor(name).to(device, dtype), pack=False)


def weight_bytes(model: ModelConfig, dtype: str) -> int:
    """Bytes of all weights."""
    checkpoint = RandomCheckpoint(model, torch.float32, torch.device("meta"))
    return sum(checkpoint.blank_tensor(name).numel() for name in checkpoint.tensor_names()) * DTYPE_BYTES[dtype]


def step_bytes(model: ModelConfig, build: BuildConfig, weights: DecoderWeights, batch: int) -> int:
    """Bytes that a decode step of ``batch`` full sessions must read; over the bandwidth, the floor of its time.

    Every weight once, but of the embedding only the tokens' rows; and the C keys and values that each session sees in
    each layer.
    """
    rows = weights.embedding.blocks if isinstance(weights.embedding, BlockWeight) else weights.embedding
    visible = build.sink_token_length + build.ring
    cache = batch * kv_bytes_per_session(model, build, "cuda") * visible // build.max_attention_window
    return _bytes_of((weights.layers, weights.norm, weights.lm_head)) + batch * rows[0].nbytes + cache


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
            name: replace(projection, weight=quantize(projection.weight, quantization, projection.weight.dtype))
            for name, projection in projections.items()
        }
        layers.append(replace(layer, **changed))
    return replace(weights, layers=layers)
