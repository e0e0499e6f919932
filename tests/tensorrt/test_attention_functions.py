"""TensorRT's layers for language models against torch, in networks that TensorRT's own builder takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tensorrt_rtx as trt
import torch

from tests.tensorrt.small_network import SmallNetwork, check

SOFTMAX, CAUSAL = trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
HEADS, KV_HEADS, HEAD_DIM, SLOTS = 6, 2, 16, 12


def rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """x [B, N, S, H] as complex numbers (x[i], x[i + H / 2]), turned by angles [B, S, H / 2]; float64."""
    numbers = torch.complex(*x.double().chunk(2, dim=-1)) * torch.polar(torch.ones(()).double(), angles[:, None])
    return torch.cat((numbers.real, numbers.imag), dim=-1)


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Attention of q [B, N, S, H] to k, v [B, kv heads, slots, H] with bias [B, N, S, slots], one query at a time."""
    q, k, v, bias = q.double(), k.double(), v.double(), bias.double()
    out = torch.empty_like(q)
    group = q.shape[1] // k.shape[1]
    for b, n, s in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        weights = (k[b, n // group] @ q[b, n, s] + bias[b, n, s]).exp()
        out[b, n, s] = weights @ v[b, n // group] / weights.sum()
    return out


def qkv(dtype: torch.dtype, batch: int, tokens: int, slots: int) -> Iterator[torch.Tensor]:
    for heads, length in ((HEADS, tokens), (KV_HEADS, slots), (KV_HEADS, slots)):
        yield (torch.randn(batch, heads, length, HEAD_DIM) * HEAD_DIM**-0.25).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_embedding(network: SmallNetwork, dtype: torch.dtype, interleaved: bool) -> None:
    """Of all dims, of the first 8 only, and by positions in a table."""
    batch, tokens = 2, 3
    x = torch.randn(batch, HEADS, tokens, HEAD_DIM).to(dtype)
    table = torch.linspace(0, 3, 20 * HEAD_DIM // 2).double().view(20, -1)
    positions = torch.tensor([[4, 5, 6], [17, 18, 19]])
    angles = table[positions]
    net = network.net

    def inputs(name: str, angles: torch.Tensor, dynamic: tuple[int, ...]) -> list[trt.ITensor]:
        return [
            network.input(f"{name} {kind}", values.to(dtype), dynamic)
            for kind, values in (("cos", angles.cos()), ("sin", angles.sin()))
        ]

    tensor = network.input("x", x, dynamic=(0, 2))
    network.output("all", net.add_rotary_embedding(tensor, *inputs("all", angles, (0, 1)), interleaved, 0))
    first = inputs("first", angles[..., :4], (0, 1))
    network.output("first", net.add_rotary_embedding(tensor, *first, interleaved, 8))
    by_position = net.add_rotary_embedding(tensor, *inputs("table", table, ()), interleaved, 0)
    by_position.set_input(3, network.input("positions", positions, (0, 1)))
    network.output("by position", by_position)

    def expected(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        if not interleaved:
            return rotated(x, angles)
        halves = torch.cat((x[..., ::2], x[..., 1::2]), dim=-1)
        return torch.stack(rotated(halves, angles).chunk(2, dim=-1), dim=-1).flatten(-2)

    part = torch.cat((expected(x[..., :8], angles[..., :4]), x[..., 8:].double()), dim=-1)
    whole = expected(x, angles)
    # cos and sin are rounded too, and two products of opposite signs may cancel.
    check(network, {"all": whole, "first": part, "by position": whole}, roundings=4, scale=1.0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mask", ["none", "added", "bool", "upper left", "lower right", "lengths"])
def test_attention(network: SmallNetwork, dtype: torch.dtype, mask: str) -> None:
    batch, tokens = 2, 5
    q, k, v = qkv(dtype, batch, tokens, SLOTS)
    tensors = [network.input(name, x, (0, 2)) for name, x in (("q", q), ("k", k), ("v", v))]
    causal = {"upper left": CAUSAL.UPPER_LEFT, "lower right": CAUSAL.LOWER_RIGHT}.get(mask, CAUSAL.NONE)
    attention = network.net.add_attention_v2(*tensors, SOFTMAX, causal)
    attention.decomposable = True
    network.output("out", attention)
    query, key = torch.arange(tokens)[:, None], torch.arange(SLOTS)
    seen, bias = torch.ones(batch, 1, tokens, SLOTS, dtype=torch.bool), torch.zeros(())
    if mask == "added":
        bias = torch.randn(batch, HEADS, tokens, SLOTS).to(dtype)
        attention.mask = network.input("mask", bias, (0, 2, 3))
    elif mask == "bool":
        seen = torch.rand(batch, 1, tokens, SLOTS) < 0.5
        seen[..., 0] = True
        attention.mask = network.input("mask", seen, (0, 2, 3))
    elif mask == "lengths":
        lengths = torch.tensor([4, 11], dtype=torch.int32)
        attention.key_value_lengths = network.input("lengths", lengths, (0,))
        seen = (key < lengths[:, None])[:, None, None].expand(-1, -1, tokens, -1)
    elif mask != "none":
        seen = (key <= query + (SLOTS - tokens if mask == "lower right" else 0)).expand(batch, 1, -1, -1)
    bias = torch.where(seen, bias.double(), -torch.inf).expand(batch, HEADS, -1, -1)
    check(network, {"out": attended(q, k, v, bias)}, scale=0.1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("tokens", [1, 3])
def test_attention_block(network: SmallNetwork, dtype: torch.dtype, tokens: int) -> None:
    """Rotary embedding, an update of both caches in place, and attention with a bias for each head and slot."""
    net, batch, write = network.net, 2, torch.tensor([0, 7], dtype=torch.int32)
    q, k, v = qkv(dtype, batch, tokens, tokens)
    angles = torch.rand(batch, tokens, HEAD_DIM // 2).double() * 6
    caches = [torch.randn(batch, KV_HEADS, SLOTS, HEAD_DIM).to(dtype) for _ in range(2)]
    bias = torch.randn(batch, HEADS, tokens, SLOTS).to(dtype)
    bias[..., 10:] = -torch.inf
    before = [cache.clone() for cache in caches]

    cos, sin = (network.input(name, x.float(), (0, 1)) for name, x in (("cos", angles.cos()), ("sin", angles.sin())))

    def rotate(x: trt.ITensor) -> trt.ITensor:
        wide = net.add_cast(x, trt.float32).get_output(0)
        turned = net.add_rotary_embedding(wide, cos, sin, False, 0).get_output(0)
        return net.add_cast(turned, network.type(dtype)).get_output(0)

    def update(name: str, cache: torch.Tensor, new: trt.ITensor) -> trt.ITensor:
        layer = net.add_kv_cache_update(network.input(name, cache, (0,)), new, slots, trt.KVCacheMode.LINEAR)
        return network.output(f"{name} out", layer)

    slots = network.input("write", write, (0,))
    query, key, value = (network.input(name, x, (0, 2)) for name, x in (("q", q), ("k", k), ("v", v)))
    keys, values = update("keys", caches[0], rotate(key)), update("values", caches[1], value)
    attention = net.add_attention_v2(rotate(query), keys, values, SOFTMAX, CAUSAL.NONE)
    attention.mask, attention.decomposable = network.input("bias", bias, (0, 2)), dtype == torch.float32
    network.output("out", attention)

    turned = rotated(k, angles).to(dtype)
    for row, slot in enumerate(write.tolist()):
        before[0][row, :, slot : slot + tokens] = turned[row]
        before[1][row, :, slot : slot + tokens] = v[row]
    expected = attended(rotated(q, angles).to(dtype), *before, bias)
    # Whoever rounds a query or a key the other way moves a score by as much.
    check(network, {"keys out": before[0], "values out": before[1], "out": expected}, roundings=4, scale=1.0)
    outputs = network.run()
    assert outputs["keys out"] is caches[0]
    assert outputs["values out"] is caches[1]
    assert torch.equal(caches[1], before[1])
    network.tensors["bias"] = bias.roll(1, dims=-1)
    assert (network.run()["out"].double() - expected).abs().max() > 0.1
