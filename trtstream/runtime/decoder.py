"""The decoder of both families in torch: everything in a layer except attention, which is the caller's.

On the CPU, projections of a token or a chunk run as oneDNN products over weights packed once at load. Measured on two
Zen 4 cores with SmolLM2-135M's shapes, all layers' projections of one token take 35 ms with ``F.linear`` in float32 and
18 ms packed, which is the memory's limit (bfloat16: 18 ms and 10 ms).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from trtstream.plugins.quantized_linear import quantized_linear
from trtstream.plugins.quantized_weight import QuantizedWeight
from trtstream.runtime.weight_shapes import Stored, check_tensors
from trtstream.settings import ModelConfig

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}

# oneDNN packs for a number of rows; 16 measured best or equal from 1 to 256 (a packing for 1 is 2x slower at 8).
PACKED_ROWS = 16


@dataclass(frozen=True)
class Norm:
    """Weight [hidden], and bias where the checkpoint has one."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Projection:
    """Weight [out, in], and bias [out] where the checkpoint has one."""

    weight: torch.Tensor | QuantizedWeight
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


@dataclass(frozen=True)
class DecoderWeights:
    embedding: torch.Tensor
    layers: list[LayerWeights]
    norm: Norm
    lm_head: Projection


def collect_weights(
    model: ModelConfig, names: set[str], read: Callable[[str], torch.Tensor], *, pack: bool
) -> DecoderWeights:
    """The decoder's weights from the tensors ``names`` of an engine's weights file; ``read`` returns one by its name.

    A projection ``x`` that has ``x.scales`` is quantized. ``pack`` lays the projections out for oneDNN, the only one
    that can then compute with them.
    """

    def optional(name: str) -> torch.Tensor | None:
        return read(name) if name in names else None

    def norm(name: str) -> Norm:
        return Norm(read(f"{name}.weight"), optional(f"{name}.bias"))

    def projection(name: str) -> Projection:
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
        )

    layers = [layer(f"layers.{i}") for i in range(model.num_hidden_layers)]
    lm_head = "embedding" if model.tie_word_embeddings else "lm_head"
    return DecoderWeights(read("embedding.weight"), layers, norm("norm"), projection(lm_head))


def read_weights(path: Path, model: ModelConfig, device: torch.device, *, pack: bool) -> DecoderWeights:
    """The weights in an engine's file, on ``device``; for ``pack`` see `collect_weights`.

    Raises TrtstreamError if the tensors are not the model's.
    """
    from safetensors import safe_open  # here, because all else of the decoder needs torch alone

    with safe_open(path, framework="pt", device=str(device)) as file:
        names = set(file.keys())
        entries = {name: file.get_slice(name) for name in sorted(names)}
        check_tensors(path, model, {name: Stored(x.get_dtype(), tuple(x.get_shape())) for name, x in entries.items()})
        return collect_weights(model, names, file.get_tensor, pack=pack)


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A projection's weight [out, in] in oneDNN's layout, or unchanged where oneDNN has no fast path for it."""
    supported = torch.backends.mkldnn.is_available() and (
        weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS) if supported else weight


def linear(x: torch.Tensor, projection: Projection) -> torch.Tensor:
    """x [N, in] -> [N, out]."""
    weight, bias = projection.weight, projection.bias
    if isinstance(weight, QuantizedWeight):
        out = quantized_linear(x, *weight)
        return out if bias is None else out + bias
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def normalize(x: torch.Tensor, norm: Norm, model: ModelConfig) -> torch.Tensor:
    """RMSNorm or LayerNorm over the last dimension."""
    if model.norm == "rms":
        return F.rms_norm(x, x.shape[-1:], norm.weight, model.norm_eps)
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, model.norm_eps)


def mlp(x: torch.Tensor, layer: LayerWeights, model: ModelConfig) -> torch.Tensor:
    activate = ACTIVATIONS[model.hidden_act]
    x = linear(x, layer.up)
    if model.gated_mlp:
        gate, up = x.chunk(2, dim=-1)
        x = activate(gate) * up
    else:
        x = activate(x)
    return linear(x, layer.down)


Attention = Callable[[int, torch.Tensor], torch.Tensor]
"""Layer number and qkv [N, (heads + 2 * kv_heads) * head_dim] -> [N, heads * head_dim]."""


def decode_layers(x: torch.Tensor, weights: DecoderWeights, model: ModelConfig, attention: Attention) -> torch.Tensor:
    """Hidden states [N, hidden] of N tokens after all layers."""
    for index, layer in enumerate(weights.layers):
        normed = normalize(x, layer.attention_norm, model)
        attended = linear(attention(index, linear(normed, layer.qkv)), layer.attention_output)
        if model.residual == "parallel":
            mlp_input = normed if model.shared_norm else normalize(x, layer.mlp_norm, model)
            x = x + attended + mlp(mlp_input, layer, model)
        else:
            x = x + attended
            x = x + mlp(normalize(x, layer.mlp_norm, model), layer, model)
    return x


def logits(x: torch.Tensor, weights: DecoderWeights, model: ModelConfig) -> torch.Tensor:
    """Hidden states [N, hidden] -> logits [N, vocab] in x's dtype."""
    return linear(normalize(x, weights.norm, model), weights.lm_head)
