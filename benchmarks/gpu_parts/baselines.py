"""The methods that streaming attention is compared with, on the same weights: recompute, and whole-cache rotation.

Both share the decoder's fused projections with our engine, which favours them over the code they stand for. Greedy and
for one session, as in the paper (arXiv:2309.17453, figure 10).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from trtstream.plugins.positions import PositionEncoding, rotate
from trtstream.runtime.decoder import DecoderWeights, decode_layers, logits
from trtstream.settings import ModelConfig


class WholeCacheRotation:
    """The paper's method: keys are stored unrotated, and every step rotates all of them to their places in the cache.

    Eager torch in the weights' dtype, softmax in float32: the operations of the paper's code, layer by layer.
    """

    def __init__(self, model: ModelConfig, weights: DecoderWeights, sinks: int, ring: int) -> None:
        self._model, self._weights = model, weights
        self._sinks, self._capacity = sinks, sinks + ring
        like = {"device": weights.embedding.device, "dtype": weights.embedding.dtype}
        cos, sin = PositionEncoding.of(model).rotation(torch.arange(self._capacity))
        self._cos, self._sin = cos.to(**like), sin.to(**like)  # [C, head_dim / 2]
        empty = torch.empty(model.num_key_value_heads, 0, model.head_dim, **like)
        self._cache = [(empty, empty)] * model.num_hidden_layers  # keys, values [kv_heads, tokens, head_dim]

    def fill(self) -> None:
        """Make the cache full, of random keys and values."""
        shape = (self._model.num_key_value_heads, self._capacity, self._model.head_dim)
        self._cache = [tuple(x.new_empty(shape).normal_() for x in layer) for layer in self._cache]

    @torch.inference_mode()
    def step(self, token: torch.Tensor) -> torch.Tensor:
        """Feed one token [1] (int64); logits [vocab]."""
        hidden = decode_layers(self._weights.embedding[token], self._weights, self._model, self._attention)
        return logits(hidden, self._weights, self._model)[0]

    def _attention(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        heads, kv_heads, head_dim = (
            self._model.num_attention_heads,
            self._model.num_key_value_heads,
            self._model.head_dim,
        )
        q, k, v = qkv.view(-1, 1, head_dim).split((heads, kv_heads, kv_heads))  # [heads, 1, head_dim]
        keys, values = (self._append(old, new) for old, new in zip(self._cache[layer], (k, v), strict=True))
        self._cache[layer] = keys, values

        length = keys.shape[1]
        q = rotate(q, self._cos[length - 1], self._sin[length - 1])
        keys = rotate(keys, self._cos[:length], self._sin[:length])
        keys, values = (x.repeat_interleave(heads // kv_heads, dim=0) for x in (keys, values))
        scores = q @ keys.transpose(1, 2) * head_dim**-0.5
        return (scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ values).view(1, -1)

    def _append(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """A full cache loses its oldest token after the sinks."""
        if old.shape[1] < self._capacity:
            return torch.cat((old, new), dim=1)
        return torch.cat((old[:, : self._sinks], old[:, self._sinks + 1 :], new), dim=1)


Recompute = Callable[[torch.Tensor], torch.Tensor]
"""Token ids [T] (int64) -> logits [vocab] after the last, by a dense forward over all of them."""


def recompute(model: ModelConfig, weights: DecoderWeights) -> tuple[str, Recompute]:
    """Which implementation it is, and the function: transformers' where it is installed, else the same in torch."""
    try:
        from transformers import LlamaForCausalLM  # noqa: F401
    except ImportError:
        return "torch", torch_recompute(model, weights)
    return "transformers", transformers_recompute(model, weights)


def torch_recompute(model: ModelConfig, weights: DecoderWeights) -> Recompute:
    """A dense forward in plain torch; attention is ``scaled_dot_product_attention``, only the last token has logits."""
    heads, kv_heads, head_dim = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    positions = PositionEncoding.of(model).to(weights.embedding.device)

    @torch.inference_mode()
    def run(tokens: torch.Tensor) -> torch.Tensor:
        cos, sin = positions.rotation(torch.arange(len(tokens), device=tokens.device))

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            x = qkv.view(len(qkv), -1, head_dim).transpose(0, 1)
            q, k, v = x.split((heads, kv_heads, kv_heads))
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            attended = F.scaled_dot_product_attention(
                q[None], k[None], v[None], is_causal=True, enable_gqa=heads != kv_heads
            )
            return attended[0].transpose(0, 1).flatten(1)

        hidden = decode_layers(weights.embedding[tokens], weights, model, attention)
        return logits(hidden[-1:], weights, model)[0]

    return run


def transformers_recompute(model: ModelConfig, weights: DecoderWeights) -> Recompute:
    """transformers' LlamaForCausalLM on the same memory as ``weights``, with its ``sdpa`` attention."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.max_position_embeddings,
        rms_norm_eps=model.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope.theta},
        tie_word_embeddings=model.tie_word_embeddings,
        attn_implementation="sdpa",
    )
    query_rows = model.num_attention_heads * model.head_dim
    key_rows = model.num_key_value_heads * model.head_dim
    state = {
        "model.embed_tokens.weight": weights.embedding,
        "model.norm.weight": weights.norm.weight,
        "lm_head.weight": weights.lm_head.weight,
    }
    for i, layer in enumerate(weights.layers):
        q, k, v = layer.qkv.weight.split((query_rows, key_rows, key_rows))
        gate, up = layer.up.weight.chunk(2)
        names = {
            "input_layernorm": layer.attention_norm.weight,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer.attention_output.weight,
            "post_attention_layernorm": layer.mlp_norm.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down.weight,
        }
        state |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in names.items()}
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)
    llama.load_state_dict(state, assign=True)
    llama.model.rotary_emb = LlamaRotaryEmbedding(config).to(weights.embedding.device)  # no part of the state
    llama.eval()

    @torch.inference_mode()
    def run(tokens: torch.Tensor) -> torch.Tensor:
        return llama(tokens[None], use_cache=False, logits_to_keep=1).logits[0, -1]

    return run
