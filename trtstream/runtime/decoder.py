"""The decoder of both families in torch: everything of a layer but its attention, which the caller brings.

On the CPU, projections of a token or a chunk run as oneDNN products over weights packed once at load. Measured on two
Zen 4 cores with SmolLM2-135M's shapes, all layers' projections of one token take 35 ms with ``F.linear`` in float32 and
18 ms packed, which is what the memory allows (bfloat16: 18 ms and 10 ms).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from trtstream.plugins.quantized_linear import quantized_linear
from trtstream.plugins.quantized_weight import QuantizedWeight
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
class Parameters:
    """A projection or a norm: weight, and bias where the checkpoint has one."""

    weight: torch.Tensor | QuantizedWeight
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class LayerWeights:
    """One layer. ``up`` holds the gate's rows first where the MLP is gated; ``mlp_norm`` is None where it is shared."""

    attention_norm: Parameters
    qkv: Parameters
    attention_output: Parameters
    mlp_norm: Parameters | None
    up: Parameters
    down: Parameters


@dataclass(frozen=True)
class DecoderWeights:
    embedding: torch.Tensor
    layers: list[LayerWeights]
    norm: Parameters
    lm_head: Parameters


def collect_weights(
    model: ModelConfig, names: set[str], read: Callable[[str], torch.Tensor], *, pack: bool
) -> DecoderWeights:
    """Put the tensors of an engine's weights file, ``names``, together; ``read`` gives one by its name.

    A projection ``x`` that has ``x.scales`` is quantized. ``pack`` lays the projections out for oneDNN, which then
    computes with them and with nothing else.
    """

    def optional(name: str) -> torch.Tensor | None:
        return read(name) if name in names else None

    def norm(name: str) -> Parameters:
        return Parameters(read(f"{name}.weight"), optional(f"{name}.bias"))

    def projection(name: str) -> Parameters:
        weight, scales = read(f"{name}.weight"), optional(f"{name}.scales")
        if scales is not None:
            return Parameters(QuantizedWeight(weight, scales, optional(f"{name}.zeros")), optional(f"{name}.bias"))
        return Parameters(pack_weight(weight) if pack else weight, optional(f"{name}.bias"))

    up = "gate_up" if model.gated_mlp else "up"
    layers = [
        LayerWeights(
            attention_norm=norm(f"layers.{i}.attention_norm"),
            qkv=projection(f"layers.{i}.qkv"),
            attention_output=projection(f"layers.{i}.attention_output"),
            mlp_norm=None if model.shared_norm else norm(f"layers.{i}.mlp_norm"),
            up=projection(f"layers.{i}.{up}"),
            down=projection(f"layers.{i}.down"),
        )
        for i in range(model.num_hidden_layers)
    ]
    lm_head = "embedding" if model.tie_word_embeddings else "lm_head"
    return DecoderWeights(read("embedding.weight"), layers, norm("norm"), projection(lm_head))


def read_weights(path: Path, model: ModelConfig, device: torch.device, *, pack: bool) -> DecoderWeights:
    """The weights in an engine's file, on ``device``; for ``pack`` see `collect_weights`."""
    from safetensors import safe_open  # here, because all else of the decoder needs torch alone

    with safe_open(path, framework="pt", device=str(device)) as file:
        return collect_weights(model, set(file.keys()), file.get_tensor, pack=pack)


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A projection's weight [out, in] in oneDNN's own layout, or as it is where oneDNN has no fast path for it."""
    supported = torch.backends.mkldnn.is_available() and (
        weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS) if supported else weight


def linear(x: torch.Tensor, projection: Parameters) -> torch.Tensor:
    """x [N, in] -> [N, out]."""
    weight, bias = projection.weight, projection.bias
    if isinstance(weight, QuantizedWeight):
        out = quantized_linear(x, *weight)
        return out if bias is None else out + bias
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def normalize(x: torch.Tensor, parameters: Parameters, model: ModelConfig) -> torch.Tensor:
    """RMSNorm or LayerNorm over the last dimension."""
    if model.norm == "rms":
        return F.rms_norm(x, x.shape[-1:], parameters.weight, model.norm_eps)
    return F.layer_norm(x, x.shape[-1:], parameters.weight, parameters.bias, model.norm_eps)


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
    """Hidden states [N, hidden] of N tokens through all layers."""
    for index, layer in enumerate(weights.layers):
        normed = normalize(x, layer.attention_norm, model)
        attended = linear(attention(index, linear(normed, layer.qkv)), layer.attention_output)
        if model.residual == "parallel":
            if layer.mlp_norm is not None:
                normed = normalize(x, layer.mlp_norm, model)
            x = x + attended + mlp(normed, layer, model)
        else:
            x = x + attended
            x = x + mlp(normalize(x, layer.mlp_norm, model), layer, model)
    return x


def logits(x: torch.Tensor, weights: DecoderWeights, model: ModelConfig) -> torch.Tensor:
    """Hidden states [N, hidden] -> logits [N, vocab] in x's dtype."""
    return linear(normalize(x, weights.norm, model), weights.lm_head)
