"""Computes logits from a checkpoint in TensorRT-LLM's format, with plain torch, as upstream's layers do.

Written from upstream's layer definitions, and shares nothing with the converter:

* layers/attention.py, layers/mlp.py, layers/linear.py, layers/normalization.py, models/llama/model.py and
  models/falcon/model.py in https://github.com/NVIDIA/TensorRT-LLM/tree/28fb9aacaa5a05494635194a9cbb264da9a744bd
  (v0.12.0)

Every rank of a stage has its own hidden state, and what one rank gets wrong stays wrong on it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

Weights = dict[str, torch.Tensor]
Hidden = list[torch.Tensor]
"""One [T, hidden_size] for each rank of a stage."""

ACTIVATIONS = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
}
LAYER_NORM_EPS = 1e-5  # of FalconDecoderLayer.post_layernorm and FalconModel.ln_f, whatever the config says


def read_ranks(folder: Path) -> tuple[dict[str, Any], list[Weights]]:
    config = json.loads((folder / "config.json").read_text())
    return config, [load_file(folder / f"rank{rank}.safetensors") for rank in range(config["mapping"]["world_size"])]


def logits(config: dict[str, Any], ranks: list[Weights], tokens: list[int]) -> torch.Tensor:
    """Logits [T, vocab_size] of a prompt, from the pipeline's stages in order."""
    tp_size, pp_size = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
    stages = [ranks[stage * tp_size : (stage + 1) * tp_size] for stage in range(pp_size)]
    hidden = [F.embedding(torch.tensor(tokens), rank["transformer.vocab_embedding.weight"]) for rank in stages[0]]
    layer = llama_layer if config["architecture"] == "LlamaForCausalLM" else falcon_layer
    for stage in stages:
        for i in range(config["num_hidden_layers"] // pp_size):
            prefix = f"transformer.layers.{i}."
            stored = [{k.removeprefix(prefix): v for k, v in rank.items() if k.startswith(prefix)} for rank in stage]
            hidden = layer(config, stored, hidden)
    last = [
        norm(config, rank, "transformer.ln_f", x, LAYER_NORM_EPS) for rank, x in zip(stages[-1], hidden, strict=True)
    ]
    gathered = [F.linear(x, rank["lm_head.weight"]) for rank, x in zip(stages[-1], last, strict=True)]
    return torch.cat(gathered, dim=1)[:, : config["vocab_size"]]


def llama_layer(config: dict[str, Any], ranks: list[Weights], hidden: Hidden) -> Hidden:
    hidden = add(
        hidden,
        row_linear(ranks, "attention.dense", attention(config, ranks, norms(config, ranks, "input_layernorm", hidden))),
    )
    return add(
        hidden, row_linear(ranks, "mlp.proj", gated_mlp(config, ranks, norms(config, ranks, "post_layernorm", hidden)))
    )


def falcon_layer(config: dict[str, Any], ranks: list[Weights], hidden: Hidden) -> Hidden:
    parallel = config["new_decoder_architecture"] or config["parallel_attention"]
    normed = norms(config, ranks, "input_layernorm", hidden)
    attended = row_linear(ranks, "attention.dense", attention(config, ranks, normed), reduce=not parallel)
    if config["new_decoder_architecture"]:
        mlp_input = norms(config, ranks, "mlp_layernorm", hidden)
    elif parallel:
        mlp_input = normed
    else:
        hidden = add(hidden, attended)
        mlp_input = norms(config, ranks, "post_layernorm", hidden, LAYER_NORM_EPS)
    inner = [ACTIVATIONS[config["hidden_act"]](x) for x in column_linear(ranks, "mlp.fc", mlp_input)]
    output = row_linear(ranks, "mlp.proj", inner, reduce=not parallel)
    return add(hidden, all_reduce(add(output, attended)) if parallel else output)


def attention(config: dict[str, Any], ranks: list[Weights], hidden: Hidden) -> Hidden:
    tp_size, head_size = config["mapping"]["tp_size"], config["head_size"]
    heads, kv_heads = config["num_attention_heads"] // tp_size, -(-config["num_key_value_heads"] // tp_size)
    outputs = []
    for rank, qkv in enumerate(column_linear(ranks, "attention.qkv", hidden)):
        assert qkv.shape[1] == (heads + 2 * kv_heads) * head_size
        q, k, v = qkv.unflatten(1, (-1, head_size)).transpose(0, 1).split((heads, kv_heads, kv_heads))
        distances = torch.ones(len(qkv), len(qkv)).tril().log()  # 0 where visible, else minus infinity
        if config["position_embedding_type"] == "rope_gpt_neox":
            q, k = rotate(config, q), rotate(config, k)
            mask = distances.expand(heads, -1, -1)
        else:
            slopes = alibi_slopes(config["num_attention_heads"])[rank * heads : (rank + 1) * heads]
            mask = distances + slopes[:, None, None] * torch.arange(len(qkv)) / math.sqrt(head_size)
        group = heads // kv_heads
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scores = q @ k.transpose(1, 2) / math.sqrt(head_size) + mask
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
    return outputs


def rotate(config: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    """GPT-NeoX rotation of x [heads, T, head_size], dimension i with i + head_size / 2."""
    half = config["head_size"] // 2
    frequencies = config.get("rotary_base", 10000.0) ** -(torch.arange(half, dtype=torch.float64) / half)
    scaling = config.get("rotary_scaling")
    if scaling and scaling["type"] == "linear":
        frequencies = frequencies / scaling["factor"]
    elif scaling:
        assert scaling["type"] == "llama3"
        frequencies = torch.tensor([llama3_frequency(f, scaling) for f in frequencies.tolist()], dtype=torch.float64)
    angles = torch.arange(x.shape[1])[:, None] * frequencies
    cos, sin = angles.cos().float(), angles.sin().float()
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def llama3_frequency(frequency: float, scaling: dict[str, Any]) -> float:
    context, low, high = (
        scaling[name] for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    wavelength = 2 * math.pi / frequency
    if wavelength < context / high:
        return frequency
    if wavelength > context / low:
        return frequency / scaling["factor"]
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / scaling["factor"] + smooth * frequency


def alibi_slopes(heads: int) -> torch.Tensor:
    """For a power of two, which Falcon-RW's head counts are."""
    assert heads & (heads - 1) == 0
    return torch.tensor([2.0 ** (-8 * (head + 1) / heads) for head in range(heads)])


def gated_mlp(config: dict[str, Any], ranks: list[Weights], hidden: Hidden) -> Hidden:
    fc, gate = column_linear(ranks, "mlp.fc", hidden), column_linear(ranks, "mlp.gate", hidden)
    return [ACTIVATIONS[config["hidden_act"]](a) * b for a, b in zip(fc, gate, strict=True)]


def column_linear(ranks: list[Weights], name: str, hidden: Hidden) -> Hidden:
    return [F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias")) for w, x in zip(ranks, hidden, strict=True)]


def row_linear(ranks: list[Weights], name: str, hidden: Hidden, reduce: bool = True) -> Hidden:
    """Without ``reduce`` the caller adds the ranks up, biases and all."""
    products = [F.linear(x, weights[f"{name}.weight"]) for weights, x in zip(ranks, hidden, strict=True)]
    sums = all_reduce(products) if reduce else products
    return [x + weights.get(f"{name}.bias", 0.0) for weights, x in zip(ranks, sums, strict=True)]


def all_reduce(hidden: Hidden) -> Hidden:
    return [torch.stack(hidden).sum(0)] * len(hidden)


def add(a: Hidden, b: Hidden) -> Hidden:
    return [x + y for x, y in zip(a, b, strict=True)]


def norms(config: dict[str, Any], ranks: list[Weights], name: str, hidden: Hidden, eps: float | None = None) -> Hidden:
    return [norm(config, rank, name, x, eps) for rank, x in zip(ranks, hidden, strict=True)]


def norm(config: dict[str, Any], weights: Weights, name: str, x: torch.Tensor, eps: float | None) -> torch.Tensor:
    """RmsNorm, whose eps is always the config's, or LayerNorm."""
    size, weight = (x.shape[-1],), weights[f"{name}.weight"]
    if config["architecture"] == "LlamaForCausalLM":
        return F.rms_norm(x, size, weight, config["norm_epsilon"])
    return F.layer_norm(x, size, weight, weights[f"{name}.bias"], config["norm_epsilon"] if eps is None else eps)
