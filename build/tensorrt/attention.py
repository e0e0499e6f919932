"""Streaming attention on TensorRT's layers. Its inputs and their numbers: `trtstream.plugins.tensorrt_io`.

Keys are stored rotated at their own t, and one fused attention takes the query rotated at t over the whole cache. The
rest goes into its additive mask: which slots a query sees, ALiBi's bias, and for rotary models a sink's
distance, which stops growing at C - 1. Its score is the fused product's, ``q(t) . k``, and the correction
``(q(p(t)) - q(t)) . k``: a product with S_max keys only. While t < C, where p(t) = t, it is exactly zero. So no key is
ever rotated again, no score is computed twice, and decode and prefill are one network.

The mask has the dtype of the query, to which bias and correction, computed in float32, are rounded. That error is of
the order of the one that rounded queries and keys cause in scores: with SmolLM2, 160 tokens and C = 32, evaluated on
the CPU in bfloat16, the logits' error is 2.3 % of their deviation before C and 2.2 % after (the cuda target's
definition: 2.1 %).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trtstream.build.tensorrt.layers import Layers, Rotation, Tensor
from trtstream.plugins import tensorrt_io as io
from trtstream.plugins.kv_cache import cache_slots
from trtstream.plugins.positions import PositionEncoding
from trtstream.settings import BuildConfig, ModelConfig

# Finite, so that a row that sees nothing (its session is idle in this step) has no NaN; float16 holds it.
MASKED = -30000.0


@dataclass(frozen=True)
class CallPlan:
    """Inputs that all layers share in a call: computed once, used L times."""

    model: ModelConfig
    write_slots: Tensor  # [B] int32
    split_sizes: Tensor  # [4] int64: B, T, heads + 2 * kv_heads, head_dim
    mask: Tensor  # [B, 1 or heads, T, C]: MASKED where a slot is not visible, ALiBi's bias where it is
    max_sinks: int
    key: Rotation | None  # None with ALiBi
    query: Rotation | None  # the queries' rotations are scaled by 1 / sqrt(head_dim), which attention does not
    query_to_sinks: Rotation | None  # from t to p(t); None also where no session has sinks


def plan_call(
    layers: Layers, inputs: dict[str, Tensor], model: ModelConfig, build: BuildConfig, target: str
) -> CallPlan:
    """Plan the tokens of a call from its inputs."""
    visible, distance = _visible(layers, inputs, model, build, target)
    positions = PositionEncoding.of(model)
    head_sizes = torch.tensor([model.num_attention_heads + 2 * model.num_key_value_heads, model.head_dim])
    key = query = query_to_sinks = None
    if positions.slopes is None:
        bias = layers.constant(torch.zeros(1, 1, 1, 1))
        scale = model.head_dim**-0.5
        cos_t, sin_t, cos_p, sin_p = inputs[io.ROTATION].unbind(2)
        key, query = (cos_t, sin_t), (cos_t * scale, sin_t * scale)
        if build.max_sink_token_length:
            # Rotation is linear in cos and sin.
            query_to_sinks = ((cos_p - cos_t) * scale, (sin_p - sin_t) * scale)
    else:
        bias = distance.cast(torch.float32) * layers.constant(-positions.slopes.view(1, -1, 1, 1))
    mask = visible.where(bias, layers.constant(torch.full((1, 1, 1, 1), MASKED)))
    if query_to_sinks is None:  # no layer adds to it
        mask = mask.cast(getattr(torch, build.dtype))
    return CallPlan(
        model=model,
        write_slots=inputs[io.WRITE_SLOTS],
        split_sizes=layers.concat([inputs[io.TOKENS].sizes(), layers.constant(head_sizes)], 0),
        mask=mask,
        max_sinks=build.max_sink_token_length,
        key=key,
        query=query,
        query_to_sinks=query_to_sinks,
    )


def _visible(
    layers: Layers, inputs: dict[str, Tensor], model: ModelConfig, build: BuildConfig, target: str
) -> tuple[Tensor, Tensor]:
    """The slots that each token sees (bool), and their distances from it (int32): both [B, 1, T, C]."""
    sinks, newest, stored = inputs[io.ROWS].reshape(0, 3, 1, 1).unbind(1)  # [B, 1, 1]
    p, later = inputs[io.QUERIES].reshape(0, 0, 2, 1).unbind(2)  # [B, T, 1]
    slots, max_sinks = cache_slots(model, build, target), build.max_sink_token_length
    ring_slots = slots - max_sinks - 1

    # The last slot is the scratch slot: as ring slot -M it is older than any token in the cache.
    ring_slot = layers.constant(torch.tensor([*range(ring_slots), -ring_slots], dtype=torch.int32).view(1, 1, -1))
    behind = newest - ring_slot
    age = (behind < 0).where(behind + ring_slots, behind)
    distance = age - later
    visible = (distance > -1) & (distance < build.ring) & (age < stored)
    if max_sinks:
        sink = layers.constant(torch.arange(max_sinks, dtype=torch.int32).view(1, 1, -1))
        sink_distance = p - sink
        visible = layers.concat([(sink < sinks) & (sink_distance > -1), visible], 2)
        distance = layers.concat([sink_distance, distance], 2)
    return visible.reshape(0, 1, -1, slots), distance.reshape(0, 1, -1, slots)


def streaming_attention(
    layers: Layers, plan: CallPlan, layer: int, qkv: Tensor, caches: tuple[Tensor, Tensor]
) -> Tensor:
    """Write keys and values of a layer's tokens to its caches, then attend.

    qkv [B * T, (heads + 2 * kv_heads) * head_dim] as projected; ``caches`` of keys and values. Returns
    [B * T, heads * head_dim] in qkv's dtype.
    """
    model, dtype = plan.model, qkv.dtype
    heads, kv_heads, head_dim = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    q, k, v = qkv.reshape_to(plan.split_sizes).transpose(0, 2, 1, 3).split((heads, kv_heads, kv_heads), axis=1)
    q = q.cast(torch.float32)
    if plan.key is None or plan.query is None:
        query = q * head_dim**-0.5
    else:
        query, k = q.rotate(plan.query), k.cast(torch.float32).rotate(plan.key).cast(dtype)

    keys, values = (
        layers.kv_cache_update(cache, new, plan.write_slots) for cache, new in zip(caches, (k, v), strict=True)
    )
    for name, cache in zip(io.cache_names(model)[layer], (keys, values), strict=True):
        layers.mark_output(io.updated(name), cache)

    mask = plan.mask
    if plan.query_to_sinks is not None:
        sink_keys = keys.narrow(2, 0, plan.max_sinks).cast(torch.float32)
        # The queries of one key-value head side by side.
        moved = q.rotate(plan.query_to_sinks).reshape(0, kv_heads, -1, head_dim)
        correction = moved.matmul_transposed(sink_keys).reshape(0, heads, -1, plan.max_sinks)
        mask = mask + correction.pad(3, mask.shape[3])
    attended = layers.attention(query.cast(dtype), keys, values, mask.cast(dtype))
    return attended.transpose(0, 2, 1, 3).reshape(-1, heads * head_dim)
