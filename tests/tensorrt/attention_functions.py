"""TensorRT's layers for language models in torch: rotary embedding, KV cache update and attention.

Functions like those of layer_functions.py. B is the batch, N the heads, S the tokens, H the head_dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tests.tensorrt.layer_functions import BOOLS, FLOATS, INTEGERS, Tensor, check_indices, check_types, wide

if TYPE_CHECKING:
    import tensorrt_rtx as trt


def rotary_embedding(
    layer: trt.IRotaryEmbeddingLayer, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Rotate x [B, N, S, H] by cos and sin [B, S, rotary / 2].

    Where ``positions`` [B, S] are given, cos and sin are tables of them: [max position + 1, rotary / 2]. Pairs are
    (i, i + rotary / 2) or, interleaved, (2 i, 2 i + 1); what is behind the rotary dims passes through.
    """
    check_types(FLOATS, x, cos, sin)
    if positions is not None:
        check_indices(positions, len(cos))
        cos, sin = cos[positions], sin[positions]
    rotary = layer.rotary_embedding_dim or x.shape[-1]
    expected = (x.shape[0], x.shape[2], rotary // 2)
    if cos.shape != expected or sin.shape != expected:
        raise ValueError(f"cos {tuple(cos.shape)} and sin {tuple(sin.shape)} are not {expected}")
    x, cos, sin = wide(x, cos.unsqueeze(1), sin.unsqueeze(1))
    turned, rest = x[..., :rotary], x[..., rotary:]
    pairs = turned.unflatten(-1, (-1, 2) if layer.interleaved else (2, -1))
    axis = -1 if layer.interleaved else -2
    a, b = pairs.unbind(axis)
    turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=axis).flatten(-2)
    return torch.cat((turned, rest), dim=-1)


def kv_cache_update(
    layer: trt.IKVCacheUpdateLayer,
    cache: Tensor,
    update: Tensor,
    write_indices: Tensor,
    update_lengths: Tensor | None = None,
) -> Tensor:
    """Write update [B, N, S, H] into cache [B, N, slots, H], in place, from the slots write_indices [B] on."""
    if layer.cache_mode.name != "LINEAR" or update_lengths is not None:
        raise ValueError(f"mode {layer.cache_mode.name}, or a packed update, is not known")
    check_types(FLOATS, cache, update)
    check_types(INTEGERS, write_indices)
    (batch, heads, slots, head_dim), tokens = cache.shape, update.shape[2]
    if update.shape != (batch, heads, tokens, head_dim) or write_indices.shape != (batch,):
        raise ValueError(
            f"update {tuple(update.shape)} and write indices {tuple(write_indices.shape)} do not fit "
            f"the cache {tuple(cache.shape)}"
        )
    check_indices(torch.cat((write_indices, write_indices + tokens - 1)), slots)
    for row, first in enumerate(write_indices.tolist()):
        cache[row, :, first : first + tokens] = update[row]
    return cache


def attention(
    layer: trt.IAttentionInputLayer,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    quantize_scale: Tensor | None = None,
    query_lengths: Tensor | None = None,
    key_value_lengths: Tensor | None = None,
) -> Tensor:
    """softmax(q k^T + mask) v of q [B, N, S, H] and k, v [B, kv heads, slots, H]; the weights stay float32 throughout.

    ``mask`` broadcasts to [B, N, S, slots]: bool (true is seen) or of q's type (added). A row that sees nothing is NaN,
    and so is one that gives weight 0 to a NaN, as in memory that was never written.
    """
    properties = layer.attention
    causal = properties.causal_kind.name
    if (mask is None) != (properties.mask is None):
        raise ValueError("the mask is not where these bindings put it, at input 3")
    if quantize_scale is not None or query_lengths is not None or properties.norm_op.name != "SOFTMAX":
        raise ValueError("attention that is quantized, packed or not normalized by softmax is not known")
    if causal != "NONE" and not (mask is None and key_value_lengths is None):
        raise ValueError("a causal mask together with a mask or lengths is not known")
    added = [mask] if mask is not None and mask.dtype not in BOOLS else []
    check_types(FLOATS, q, k, v, *added)
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads % kv_heads or k.shape != v.shape:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit")
    queries, slots = q.shape[2], k.shape[2]
    allowed = torch.ones(queries, slots, dtype=torch.bool)
    if causal != "NONE":
        allowed = allowed.tril(slots - queries if causal == "LOWER_RIGHT" else 0)
    if key_value_lengths is not None:
        check_types(INTEGERS, key_value_lengths)
        allowed = allowed & (torch.arange(slots) < key_value_lengths.view(-1, 1, 1, 1))

    q, k, v = wide(q, *(x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v)))
    scores = q @ k.mT
    if added:
        scores = scores + mask.float()
    elif mask is not None:
        allowed = allowed & mask
    return scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v
