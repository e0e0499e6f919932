"""The methods that streaming attention is compared with, on the same weights: recompute, and whole-cache rotation.

Both use the decoder's fused projections, as our engine does, which makes them faster than the published code. Greedy
and for one session, as in the paper (arXiv:2309.17453, figure 10).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.models import recipes
from trtstream.errors import TrtstreamError
from trtstream.plugins.positions import PositionEncoding, rotate
from trtstream.runtime.decoder import DecoderWeights, decode_layers, logits
from trtstream.settings import ModelConfig


class WholeCacheRotation:
    """The paper's method: keys are stored unrotated, and every step rotates all of them to their places in the cache.

    Eager torch in the weights' dtype, softmax in float32, layer by layer as in the paper's code. Two of that code's
    costs are left out: here memory is allocated once and a new key overwrites the oldest (there every step copies the
    cache), and the queries that share keys are one product (there keys and values are repeated).
    """

    def __init__(self, model: ModelConfig, weights: DecoderWeights, sinks: int, ring: int) -> None:
        """Raises TrtstreamError for a model with ALiBi."""
        self._model, self._weights = model, weights
        self._sinks, self._ring, self._fed = sinks, ring, 0
        like = weights.float_embedding
        rotation = PositionEncoding.of(model).rotation(torch.arange(sinks + 2 * ring))
        if rotation is None:
            raise TrtstreamError("the model has no rotary embedding: there is nothing to rotate")
        self._cos, self._sin = (x.to(like) for x in rotation)  # [S + 2 R, head_dim / 2], by place
        shape = (2, model.num_key_value_heads, sinks + ring, model.head_dim)
        self._cache = [like.new_zeros(shape) for _ in range(model.num_hidden_layers)]  # keys and values, by slot

    def fill(self) -> None:
        """Fill the cache with random keys and values."""
        self._fed = self._sinks + self._ring
        for layer in self._cache:
            layer.normal_()

    @torch.inference_mode()
    def step(self, token: torch.Tensor) -> torch.Tensor:
        """Feed one token [1] (int64); logits [vocab]."""
        sinks, ring, t = self._sinks, self._ring, self._fed
        new, length = t if t < sinks else sinks + (t - sinks) % ring, min(t + 1, sinks + ring)
        ages = (new - torch.arange(sinks, max(length, sinks), device=token.device)) % ring  # of what ring slots hold
        places = self._places(t, ages)
        cos, sin = (torch.cat((x[: min(sinks, length)], x[places])) for x in (self._cos, self._sin))

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return self._attention(self._cache[layer][:, :, :length], qkv, new, cos, sin)

        hidden = decode_layers(self._weights.float_embedding[token], self._weights, self._model, attention)
        self._fed += 1
        return logits(hidden, self._weights, self._model)[0]

    def _places(self, t: int, ages: torch.Tensor) -> torch.Tensor:
        """Where the ring's tokens, of those ages, count as being when token t is the newest."""
        return min(t, self._sinks + self._ring - 1) - ages

    def _attention(
        self, cache: torch.Tensor, qkv: torch.Tensor, new: int, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """Attention of one token, which goes to slot ``new``; cos and sin [slots, head_dim / 2] are the slots'."""
        model = self._model
        heads, kv_heads, head_dim = model.num_attention_heads, model.num_key_value_heads, model.head_dim
        q, k, v = qkv.view(-1, head_dim).split((heads, kv_heads, kv_heads))
        cache[0, :, new], cache[1, :, new] = k, v
        keys, values = cache
        q = rotate(q, cos[new], sin[new]).view(kv_heads, -1, head_dim)
        scores = q @ rotate(keys, cos, sin).transpose(1, 2) * head_dim**-0.5
        return (scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ values).view(1, -1)


class ModuloPositions(WholeCacheRotation):
    """ExecuTorch's way: a key is rotated once, to its token's number modulo 2 R behind the sinks.

    So distances are wrong between tokens on both sides of a wrap, and to the sinks. It is computed here as whole-cache
    rotation is, which gives the same numbers and no time to compare.
    """

    def _places(self, t: int, ages: torch.Tensor) -> torch.Tensor:
        return self._sinks + (t - ages - self._sinks) % (2 * self._ring)


Recompute = Callable[[torch.Tensor], torch.Tensor]
"""Token ids [T] (int64) -> logits [vocab] after the last, by a dense forward over all of them."""


def recomputes(model: ModelConfig, weights: DecoderWeights) -> dict[str, Recompute]:
    """By implementation: ``torch``, and ``transformers`` where it is installed and has this model."""
    methods = {"torch": torch_recompute(model, weights)}
    if importlib.util.find_spec("transformers") and is_transformers_llama(model, weights):
        methods["transformers"] = transformers_recompute(model, weights)
    return methods


def recompute(model: ModelConfig, weights: DecoderWeights) -> tuple[str, Recompute]:
    """``transformers`` where it is installed and has this model, else ``torch``; and that implementation."""
    return recomputes(model, weights).popitem()


def is_transformers_llama(model: ModelConfig, weights: DecoderWeights) -> bool:
    """Whether `transformers_recompute` computes this model: a Llama with plain rotary embedding and without biases."""
    biases = (each.bias for layer in weights.layers for each in (layer.qkv, layer.attention_output, layer.up))
    plain = model.rope is not None and model.rope.kind == "default"
    return model.architecture == "LlamaForCausalLM" and plain and all(bias is None for bias in biases)


def torch_recompute(model: ModelConfig, weights: DecoderWeights) -> Recompute:
    """A dense forward in plain torch, with ``scaled_dot_product_attention`` and logits of the last token alone.

    Raises TrtstreamError for a model with ALiBi.
    """
    heads, kv_heads, head_dim = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    positions = PositionEncoding.of(model).to(weights.float_embedding.device)

    @torch.inference_mode()
    def run(tokens: torch.Tensor) -> torch.Tensor:
        rotation = positions.rotation(torch.arange(len(tokens), device=tokens.device))
        if rotation is None:
            raise TrtstreamError("recompute supports rotary embedding only, and the model has ALiBi")

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            x = qkv.view(len(qkv), -1, head_dim).transpose(0, 1)
            q, k, v = x.split((heads, kv_heads, kv_heads))
            q, k = rotate(q, *rotation), rotate(k, *rotation)
            attended = F.scaled_dot_product_attention(
                q[None], k[None], v[None], is_causal=True, enable_gqa=heads != kv_heads
            )
            return attended[0].transpose(0, 1).flatten(1)

        hidden = decode_layers(weights.float_embedding[tokens], weights, model, attention)
        return logits(hidden[-1:], weights, model)[0]

    return run


def transformers_recompute(model: ModelConfig, weights: DecoderWeights) -> Recompute:
    """transformers' LlamaForCausalLM on the same memory as ``weights``, with its ``sdpa`` attention."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    assert model.rope is not None
    sizes: dict[str, Any] = asdict(model)
    rope = {"rope_type": "default", "rope_theta": model.rope.theta}
    config = LlamaConfig(
        **sizes | {"rms_norm_eps": model.norm_eps, "rope_parameters": rope, "attn_implementation": "sdpa"}
    )
    fused: dict[str, Any] = {"embedding": weights.float_embedding, "norm": weights.norm.weight}
    fused["lm_head"] = weights.lm_head.weight
    for i, layer in enumerate(weights.layers):
        for field in fields(layer):
            if field.name == "head_norms":  # a Llama has none
                continue
            name = "gate_up" if field.name == "up" else field.name
            fused[f"layers.{i}.{name}"] = getattr(layer, field.name).weight
    state = {"lm_head.weight": fused["lm_head"]}
    for name, recipe in recipes(model).items():
        rows = [shape[0] for shape in recipe.sources.values()]
        state |= zip(recipe.sources, fused[name.removesuffix(".weight")].split(rows), strict=True)
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)
    llama.load_state_dict(state, assign=True)
    llama.model.rotary_emb = LlamaRotaryEmbedding(config).to(weights.float_embedding.device)  # no part of the state
    llama.eval()

    @torch.inference_mode()
    def run(tokens: torch.Tensor) -> torch.Tensor:
        return llama(tokens[None], use_cache=False, logits_to_keep=1).logits[0, -1]

    return run
