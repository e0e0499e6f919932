"""The decoder of all families in torch: everything in a layer except attention, which is the caller's.

GPU engines run it: steps and short prompts as CUDA graphs, in which a product of up to 8 tokens and what surrounds it
are one kernel. On the CPU an engine's own library computes most of this (`trtstream.runtime.cpu`), and torch what is
left, as checkpoints that `trtstream eval` reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.nn.functional as F

from trtstream.plugins.block_weight import BLOCK_FORMATS, BlockWeight
from trtstream.plugins.quantized_linear import quantized_linear
from trtstream.plugins.quantized_weight import QuantizedWeight
from trtstream.runtime.weight_shapes import Stored, check_tensors
from trtstream.settings import ModelConfig

if TYPE_CHECKING:
    from safetensors import safe_open

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}

# oneDNN packs for a number of rows; 16 measured best or equal from 1 to 256 (a packing for 1 is 2x slower at 8).
PACKED_ROWS = 16
# Up to here, a product on a GPU is bound by reading the weight, and its kernels by their launches.
KERNEL_TOKENS = 8
# Widened at a time: 4 MB, which a third-level cache holds.
WIDENED_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Norm:
    """Weight [hidden], or of a head [head_dim], and bias where the checkpoint has one."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Projection:
    """Weight [out, in], and bias [out] where the checkpoint has one. Torch has no product with a `BlockWeight`."""

    weight: torch.Tensor | QuantizedWeight | BlockWeight
    bias: torch.Tensor | None


@dataclass(frozen=True)
class LayerWeights:
    """One layer. ``up`` has the gate's rows first where the MLP is gated; a shared norm is both norms."""

    attention_norm: Norm
    qkv: Projection
    attention_output: Projection
    mlp_norm: Norm
    up: Projection
    down: Projection
    head_norms: tuple[Norm, Norm] | None
    """Of each head's query and key; None where they are as projected."""


@dataclass(frozen=True)
class DecoderWeights:
    embedding: torch.Tensor | BlockWeight
    layers: list[LayerWeights]
    norm: Norm
    lm_head: Projection

    @property
    def float_embedding(self) -> torch.Tensor:
        """The embedding [vocab, hidden] where it is not in blocks."""
        assert isinstance(self.embedding, torch.Tensor)
        return self.embedding


def collect_weights(
    model: ModelConfig, names: set[str], read: Callable[[str], torch.Tensor], *, pack: bool = False
) -> DecoderWeights:
    """The decoder's weights from the tensors ``names`` of an engine's weights file; ``read`` returns one by its name.

    A projection ``x`` that has ``x.scales`` is quantized, and one with ``x.Q4_1`` or another of `BLOCK_FORMATS` instead
    of ``x.weight`` is in blocks. ``pack`` lays the projections out for oneDNN, the only one
    that can then compute with them.
    """

    def optional(name: str) -> torch.Tensor | None:
        return read(name) if name in names else None

    def norm(name: str) -> Norm:
        return Norm(read(f"{name}.weight"), optional(f"{name}.bias"))

    def blocks(name: str) -> BlockWeight | None:
        kind = next((kind for kind in BLOCK_FORMATS if f"{name}.{kind}" in names), None)
        return None if kind is None else BlockWeight(read(f"{name}.{kind}"), kind)

    def projection(name: str) -> Projection:
        in_blocks = blocks(name)
        if in_blocks is not None:
            return Projection(in_blocks, optional(f"{name}.bias"))
        weight, scales = read(f"{name}.weight"), optional(f"{name}.scales")
        if scales is not None:
            return Projection(QuantizedWeight(weight, scales, optional(f"{name}.zeros")), optional(f"{name}.bias"))
        return Projection(pack_weight(weight) if pack else weight, optional(f"{name}.bias"))

    def layer(name: str) -> LayerWeights:
        attention_norm = norm(f"{name}.attention_norm")
        return LayerWeights(
            attention_norm=attention_norm,
            qkv=projection(f"{name}.qkv"),
            attention_output=projection(f"{name}.attention_output"),
            mlp_norm=attention_norm if model.shared_norm else norm(f"{name}.mlp_norm"),
            up=projection(f"{name}.gate_up" if model.gated_mlp else f"{name}.up"),
            down=projection(f"{name}.down"),
            head_norms=(norm(f"{name}.q_norm"), norm(f"{name}.k_norm")) if model.qk_norm else None,
        )

    layers = [layer(f"layers.{i}") for i in range(model.num_hidden_layers)]
    lm_head = "embedding" if model.tie_word_embeddings else "lm_head"
    embedding = blocks("embedding") or read("embedding.weight")
    return DecoderWeights(embedding, layers, norm("norm"), projection(lm_head))


@contextmanager
def open_weights(path: Path, model: ModelConfig, device: torch.device) -> Iterator[safe_open]:
    """An engine's file of weights, whose tensors are read onto ``device``.

    Raises TrtstreamError if they are not the model's.
    """
    from safetensors import safe_open  # here, because all else of the decoder needs torch alone

    with safe_open(path, framework="pt", device=str(device)) as file:
        entries = {name: file.get_slice(name) for name in sorted(file.keys())}
        check_tensors(path, model, {name: Stored(x.get_dtype(), tuple(x.get_shape())) for name, x in entries.items()})
        yield file


def read_weights(path: Path, model: ModelConfig, device: torch.device) -> DecoderWeights:
    """The weights in an engine's file, on ``device``. Raises TrtstreamError if they are not the model's."""
    with open_weights(path, model, device) as file:
        return collect_weights(model, set(file.keys()), file.get_tensor)


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A projection's weight [out, in] in oneDNN's layout, or unchanged where oneDNN has no fast path for it."""
    supported = multiplies_bfloat16() if weight.dtype == torch.bfloat16 else torch.backends.mkldnn.is_available()
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS) if supported else weight


def linear(x: torch.Tensor, projection: Projection) -> torch.Tensor:
    """x [N, in] -> [N, out]."""
    weight, bias = projection.weight, projection.bias
    assert not isinstance(weight, BlockWeight), "torch has no product with blocks"
    if isinstance(weight, QuantizedWeight):
        out = quantized_linear(x, *weight)
        return out if bias is None else out + bias
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if weight.dtype == torch.bfloat16 and weight.is_cpu and len(x) > 1 and not multiplies_bfloat16():
        return _widened_linear(x, weight, bias)
    return F.linear(x, weight, bias)


@cache
def multiplies_bfloat16() -> bool:
    """Whether oneDNN has bfloat16 products on this CPU; torch's own of more than one row are slow."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _widened_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product in float32, of some rows of the weight at a time, which stay in a cache when they are widened."""
    rows = max(1, WIDENED_ELEMENTS // weight.shape[1])
    wide, out = x.float(), x.new_empty(len(x), len(weight))
    for first in range(0, len(weight), rows):
        out[:, first : first + rows] = F.linear(wide, weight[first : first + rows].float())
    return out if bias is None else out + bias


def normalize(x: torch.Tensor, norm: Norm, model: ModelConfig) -> torch.Tensor:
    """RMSNorm or LayerNorm over the last dimension."""
    if model.norm == "rms":
        return F.rms_norm(x, x.shape[-1:], norm.weight, model.norm_eps)
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, model.norm_eps)


def project(
    x: torch.Tensor,
    projection: Projection,
    model: ModelConfig,
    *,
    norm: Norm | None = None,
    activate: bool = False,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [N, in], normalized by ``norm``, times a projection, through the MLP's activation, plus ``residual`` [N, out].

    Each but the product only if it is asked for.
    """
    gated = activate and model.gated_mlp
    if _in_kernel(projection.weight, len(x)):
        from trtstream.plugins.cuda_matvec import matvec

        return matvec(
            x,
            projection.weight,
            projection.bias,
            norm_weight=None if norm is None else norm.weight,
            norm_bias=None if norm is None else norm.bias,
            norm_eps=model.norm_eps,
            layer_norm=model.norm == "layer",
            activation=model.hidden_act if activate else None,
            gated=gated,
            residual=residual,
        )
    x = linear(x if norm is None else normalize(x, norm, model), projection)
    if gated:
        gate, up = x.chunk(2, dim=-1)
        x = ACTIVATIONS[model.hidden_act](gate) * up
    elif activate:
        x = ACTIVATIONS[model.hidden_act](x)
    return x if residual is None else residual + x


def _in_kernel(weight: torch.Tensor | QuantizedWeight | BlockWeight, num_tokens: int) -> TypeGuard[torch.Tensor]:
    """Whether a product and what surrounds it are one kernel: not on the CPU, if not in Triton's interpreter there."""
    if not isinstance(weight, torch.Tensor) or weight.is_mkldnn or num_tokens > KERNEL_TOKENS:
        return False
    return not weight.is_cpu or os.environ.get("TRITON_INTERPRET") == "1"


def project_heads(x: torch.Tensor, layer: LayerWeights, model: ModelConfig) -> torch.Tensor:
    """Queries, keys and values [N, (heads + 2 * kv_heads) * head_dim] of hidden states [N, hidden]."""
    qkv = project(x, layer.qkv, model, norm=layer.attention_norm)
    if model.clip_qkv is not None:
        qkv = qkv.clamp(-model.clip_qkv, model.clip_qkv)
    if layer.head_norms is not None:
        q_norm, k_norm = layer.head_norms
        heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
        q, k, _ = qkv.unflatten(1, (-1, model.head_dim)).split((heads, kv_heads, kv_heads), dim=1)
        q.copy_(normalize(q, q_norm, model))
        k.copy_(normalize(k, k_norm, model))
    return qkv


Attention = Callable[[int, torch.Tensor], torch.Tensor]
"""Layer number and qkv [N, (heads + 2 * kv_heads) * head_dim] -> [N, heads * head_dim]."""


def decode_layers(x: torch.Tensor, weights: DecoderWeights, model: ModelConfig, attention: Attention) -> torch.Tensor:
    """Hidden states [N, hidden] of N tokens after all layers."""
    for index, layer in enumerate(weights.layers):
        attended = attention(index, project_heads(x, layer, model))
        after_attention = project(attended, layer.attention_output, model, residual=x)
        mlp_input = x if model.residual == "parallel" else after_attention
        inner = project(mlp_input, layer.up, model, norm=layer.mlp_norm, activate=True)
        x = project(inner, layer.down, model, residual=after_attention)
    return x


def logits(x: torch.Tensor, weights: DecoderWeights, model: ModelConfig) -> torch.Tensor:
    """Hidden states [N, hidden] -> logits [N, vocab] in x's dtype."""
    return project(x, weights.lm_head, model, norm=weights.norm)
