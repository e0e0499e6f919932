"""A decoder of either family as a TensorRT network: the twin of `trtstream.runtime.decoder`, with the same names.

Decode and prefill are one network; optimization profiles only bound its shapes. Hidden states are [B * T, hidden], so
that a projection is one product whatever the batch. The tests evaluate the network on the CPU; no GPU has run it yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from trtstream.build.tensorrt.attention import CallPlan, plan_call, streaming_attention
from trtstream.build.tensorrt.layers import Layers, Tensor
from trtstream.plugins import tensorrt_io as io
from trtstream.settings import BuildConfig, ModelConfig

if TYPE_CHECKING:
    import tensorrt as trt

ACTIVATIONS = {
    "silu": lambda x: x * x.activation("SIGMOID"),
    "gelu": lambda x: x.activation("GELU_ERF"),
    "gelu_pytorch_tanh": lambda x: x.activation("GELU_TANH"),
    "relu": lambda x: x.activation("RELU"),
}


def define_network(
    trt: ModuleType,
    network: trt.INetworkDefinition,
    model: ModelConfig,
    build: BuildConfig,
    target: str,
    weights: Mapping[str, torch.Tensor],
) -> list[torch.Tensor]:
    """Add the layers of a model to an empty, strongly typed network; ``trt`` is ``tensorrt`` or ``tensorrt_rtx``.

    ``weights`` are CPU tensors by canonical name (`trtstream.build.recipes`), in the engine's dtype. A projection ``x``
    may be quantized (`trtstream.build.tensorrt.quantize`): ``x.weight`` has its values and ``x.scales`` its scales.
    Returns the tensors that the network's constants point to, which must live until the engine is built. Raises
    TrtstreamError if TensorRT refuses a layer.
    """
    layers = Layers(trt, network)
    decoder = Decoder(layers, model, weights)
    inputs = _inputs(layers, model, build, target)
    with layers.named("plan"):
        plan = plan_call(layers, inputs, model, build, target)
    with layers.named("embedding"):
        embedding = layers.constant(weights["embedding.weight"])
        x = embedding.gather(inputs[io.TOKENS].reshape(-1), axis=0)
    for layer, (keys, values) in enumerate(io.cache_names(model)):
        x = decoder.layer(x, layer, plan, (inputs[keys], inputs[values]))
    with layers.named("logits"):
        x = decoder.normalize(x.gather(inputs[io.LOGITS_ROWS], axis=0), "norm")
        x = x.matmul_transposed(embedding) if model.tie_word_embeddings else decoder.linear(x, "lm_head")
        layers.mark_output(io.LOGITS, x.cast(torch.float32))
    return layers.memory


def _inputs(layers: Layers, model: ModelConfig, build: BuildConfig, target: str) -> dict[str, Tensor]:
    floats = {name: getattr(torch, build.dtype) for names in io.cache_names(model) for name in names}
    floats[io.ROTATION] = torch.float32
    shapes = io.input_shapes(model, build, target, batch=-1, tokens=-1, num_logits=-1)
    # TensorRT takes dimensions with one name for equal.
    dimensions = {name: ("batch", "tokens")[: len(shape)] for name, shape in shapes.items()}
    dimensions[io.LOGITS_ROWS] = ("logits",)
    return {
        name: layers.input(name, floats.get(name, torch.int32), shape, dimensions[name])
        for name, shape in shapes.items()
    }


@dataclass(frozen=True)
class Decoder:
    """Everything of a layer but its attention."""

    layers: Layers
    model: ModelConfig
    weights: Mapping[str, torch.Tensor]

    def layer(self, x: Tensor, layer: int, plan: CallPlan, caches: tuple[Tensor, Tensor]) -> Tensor:
        """Hidden states [N, hidden] through one layer."""
        name, model = f"layers.{layer}", self.model
        normed = self.normalize(x, f"{name}.attention_norm")
        qkv = self.heads(normed, name)
        with self.layers.named(f"{name}.attention"):
            attended = streaming_attention(self.layers, plan, layer, qkv, caches)
        attended = self.linear(attended, f"{name}.attention_output")
        with self.layers.named(f"{name}.residual"):
            if model.residual == "parallel":
                if not model.shared_norm:
                    normed = self.normalize(x, f"{name}.mlp_norm")
                return x + attended + self.mlp(normed, name)
            x = x + attended
            return x + self.mlp(self.normalize(x, f"{name}.mlp_norm"), name)

    def heads(self, x: Tensor, layer: str) -> Tensor:
        """Queries, keys and values of normalized hidden states [N, hidden]: [N, heads + 2 * kv_heads, head_dim]."""
        model = self.model
        heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
        qkv = self.linear(x, f"{layer}.qkv").reshape(0, -1, model.head_dim)
        if model.clip_qkv is not None:
            qkv = qkv.clamp(model.clip_qkv)
        if not model.qk_norm:
            return qkv
        q, k, v = qkv.split((heads, kv_heads, kv_heads), axis=1)
        q, k = self.normalize(q, f"{layer}.q_norm"), self.normalize(k, f"{layer}.k_norm")
        with self.layers.named(f"{layer}.qkv"):
            return self.layers.concat([q, k, v], 1)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """x [N, in] -> [N, out]."""
        with self.layers.named(name):
            weight = self.weights[f"{name}.weight"]
            scales, bias = self.weights.get(f"{name}.scales"), self.weights.get(f"{name}.bias")
            stored = self.layers.constant(weight) if scales is None else self.layers.dequantized(weight, scales)
            out = x.matmul_transposed(stored)
            return out if bias is None else out + self.layers.constant(bias[None])

    def normalize(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm or LayerNorm over the last dimension of x [N, hidden] or [N, heads, head_dim], in float32."""
        with self.layers.named(name):
            last = len(x.shape) - 1
            dtype, x, weight = x.dtype, x.cast(torch.float32), self._norm_parameter(f"{name}.weight", last)
            if self.model.norm == "rms":
                x = x / ((x * x).mean(axis=last) + self.model.norm_eps).sqrt() * weight
            else:
                x = x.layer_norm(weight, self._norm_bias(name, last), self.model.norm_eps)
            return x.cast(dtype)

    def _norm_parameter(self, name: str, axis: int) -> Tensor:
        """A vector along ``axis``, the last."""
        return self.layers.constant(self.weights[name][(None,) * axis]).cast(torch.float32)

    def _norm_bias(self, name: str, axis: int) -> Tensor:
        bias = f"{name}.bias"
        if bias in self.weights:
            return self._norm_parameter(bias, axis)
        weight = self.weights[f"{name}.weight"]
        return self.layers.constant(torch.zeros_like(weight, dtype=torch.float32)[(None,) * axis])

    def mlp(self, x: Tensor, layer: str) -> Tensor:
        activate, inner = ACTIVATIONS[self.model.hidden_act], self.model.intermediate_size
        with self.layers.named(f"{layer}.activation"):
            if self.model.gated_mlp:
                gate, up = self.linear(x, f"{layer}.gate_up").split((inner, inner), axis=1)
                x = activate(gate) * up
            else:
                x = activate(self.linear(x, f"{layer}.up"))
        return self.linear(x, f"{layer}.down")
