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

    Eager torch in the weights' dtype, softmax in float32, layer by layer as in the paper's code. What that code spends
    besides is spared: memory is taken once and a new key overwrites the oldest (there the cache is copied at every
    step), and the queries that share keys are one product (there keys and values are repeated).
    """

    def __init__(self, model: ModelConfig, weights: DecoderWeights, sinks: int, ring: int) -> None:
        self._model, self._weights = model, weights
        self._sinks, self._ring, self._fed = sinks, ring, 0
        like = {"device": weights.embedding.device, "dtype": weights.embedding.dtype}
        cos, sin = PositionEncoding.of(model).rotation(torch.arange(sinks + ring))
        self._cos, self._sin = cos.to(**like), sin.to(**like)  # [C, head_dim / 2], by place
        shape = (2, model.num_key_value_heads, sinks + ring, model.head_dim)
        self._cache = [torch.zeros(shape, **like) for _ in range(model.num_hidden_layers)]  # keys and values, by slot

    def fill(self) -> None:
        """Make the cache full, of random keys and values."""
        self._fed = self._sinks + self._ring
        for layer in self._cache:
            layer.normal_()

    @torch.inference_mode()
    def step(self, token: torch.Tensor) -> torch.Tensor:
        """Feed one token [1] (int64); logits [vocab]."""
        new, length, cos, sin = self._fed, self._fed + 1, self._cos, self._sin
        if self._fed >= self._sinks + self._ring:
            oldest = (self._fed - self._sinks) % self._ring
            new, length = self._sinks + oldest, self._sinks + self._ring
            cos, sin = (torch.cat((x[: self._sinks], x[self._sinks :].roll(oldest + 1, 0))) for x in (cos, sin))
        cos, sin = cos[:length], sin[:length]

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return self._attention(self._cache[layer][:, :, :length], qkv, new, cos, sin)

        hidden = decode_layers(self._weights.embedding[token], self._weights, self._model, attention)
        self._fed += 1
        return logits(hidden, self._weights, self._model)[0]

    def _attention(
        self, cache: torch.Tensor, qkv: torch.Tensor, new: int, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """Of one token, which goes to slot ``new``; cos and sin [slots, head_dim / 2] are the slots'."""
        heads, kv_heads, head_dim = (
            self._model.num_attention_heads,
            self._model.num_key_value_heads,
            self._model.head_dim,
        )
        q, k, v = qkv.view(-1, head_dim).split((heads, kv_heads, kv_heads))
        cache[0, :, new], cache[1, :, new] = k, v
        keys, values = cache
        q = rotate(q, cos[new], sin[new]).view(kv_heads, -1, head_dim)
        scores = q @ rotate(keys, cos, sin).transpose(1, 2) * head_dim**-0.5
        return (scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ values).view(1, -1)


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
