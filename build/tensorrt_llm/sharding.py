"""The parts of each canonical tensor that the ranks of a tensor- and pipeline-parallel engine hold, and their names.

Rank ``stage * tp_size + shard`` runs one shard of one pipeline stage. Names and cuts are those that upstream's layers
load (tensorrt_llm/models/{llama,falcon}/model.py, layers/{attention,mlp,linear}.py); all releases from 0.10 to
1.0 have the same. A stage numbers its layers from 0.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from trtstream.errors import TrtstreamError
from trtstream.settings import ModelConfig, TensorrtLlmOptions

Cut = Callable[[torch.Tensor, int], torch.Tensor]
"""Takes a canonical tensor and the number of a shard, and returns the part that the shard holds."""


@dataclass(frozen=True)
class Piece:
    """One tensor of one rank's file: ``cut(tensor, shard)`` of the canonical tensor that it belongs to."""

    rank: int
    name: str
    shard: int
    cut: Cut

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.cut(tensor, self.shard)


def _check_parallel_sizes(model: ModelConfig, tp_size: int, pp_size: int) -> None:
    """Raise TrtstreamError for sizes that do not divide the model; upstream's loader would drop layers or fail."""
    if model.num_hidden_layers % pp_size:
        raise TrtstreamError(
            f"--pp-size {pp_size} does not divide the {model.num_hidden_layers} layers; choose one that does"
        )
    for name, size in {"attention heads": model.num_attention_heads, "MLP columns": model.intermediate_size}.items():
        if size % tp_size:
            raise TrtstreamError(f"--tp-size {tp_size} does not divide the {size} {name}; choose one that does")
    kv_heads = model.num_key_value_heads
    if kv_heads % tp_size and tp_size % kv_heads:
        raise TrtstreamError(
            f"--tp-size {tp_size} and {kv_heads} KV heads: one must divide the other; choose another --tp-size"
        )


def pieces(model: ModelConfig, tensor_names: list[str], options: TensorrtLlmOptions) -> dict[str, list[Piece]]:
    """The pieces of each canonical tensor, in the order of ``tensor_names``.

    Raises TrtstreamError if the model cannot be divided among the ranks of ``options``.
    """
    tp_size, pp_size = options.tp_size, options.pp_size
    _check_parallel_sizes(model, tp_size, pp_size)
    layers_per_stage = model.num_hidden_layers // pp_size
    found: dict[str, list[Piece]] = defaultdict(list)

    def place(canonical: str, stage: int, name: str, cut: Cut) -> None:
        found[canonical] += [Piece(stage * tp_size + shard, name, shard, cut) for shard in range(tp_size)]

    for canonical in tensor_names:
        match = re.fullmatch(r"layers\.(\d+)\.(\w+)\.(weight|bias)", canonical)
        if match:
            stage, local = divmod(int(match[1]), layers_per_stage)
            for module, cut in _layer_modules(model, match[2], match[3], tp_size).items():
                place(canonical, stage, f"transformer.layers.{local}.{module}.{match[3]}", cut)
        elif canonical.startswith("norm."):
            place(canonical, pp_size - 1, f"transformer.ln_f.{canonical.removeprefix('norm.')}", _whole)
        elif canonical == "embedding.weight":
            place(canonical, 0, "transformer.vocab_embedding.weight", _whole)
            if model.tie_word_embeddings:
                place(canonical, pp_size - 1, "lm_head.weight", _padded_rows(tp_size))
        else:
            place(canonical, pp_size - 1, canonical, _padded_rows(tp_size))
    return found


def _layer_modules(model: ModelConfig, module: str, kind: str, tp_size: int) -> dict[str, Cut]:
    """Upstream's modules that one of our layer's modules becomes, and how each is cut."""
    rows = _rows(tp_size)
    columns = _columns(tp_size) if kind == "weight" else _bias_after_sum(model)
    parallel = model.residual == "parallel"
    modules: dict[str, dict[str, Cut]] = {
        "attention_norm": {"input_layernorm": _whole},
        "mlp_norm": {"mlp_layernorm" if parallel else "post_layernorm": _whole},
        "qkv": {"attention.qkv": _heads(model, tp_size)},
        "attention_output": {"attention.dense": columns},
        # Upstream computes act(fc(x)) * gate(x), so its fc is the checkpoint's gate and its gate the checkpoint's up.
        "gate_up": {
            "mlp.fc": lambda tensor, shard: rows(tensor.chunk(2)[0], shard),
            "mlp.gate": lambda tensor, shard: rows(tensor.chunk(2)[1], shard),
        },
        "up": {"mlp.fc": rows},
        "down": {"mlp.proj": columns},
    }
    return modules[module]


def _whole(tensor: torch.Tensor, shard: int) -> torch.Tensor:
    return tensor


def _rows(tp_size: int) -> Cut:
    return lambda tensor, shard: tensor.chunk(tp_size)[shard]


def _columns(tp_size: int) -> Cut:
    return lambda tensor, shard: tensor.chunk(tp_size, dim=1)[shard]


def _padded_rows(tp_size: int) -> Cut:
    """The same number of rows for each shard; zeros pad the last one."""
    return lambda tensor, shard: pad(tensor, (0, 0, 0, -len(tensor) % tp_size)).chunk(tp_size)[shard]


def _bias_after_sum(model: ModelConfig) -> Cut:
    """The bias of a layer whose shards are summed. Upstream adds it after the sum, on every rank, but in parallel
    blocks it sums attention and MLP together with their biases: there only the first shard may have it."""
    if model.residual == "sequential":
        return _whole
    return lambda tensor, shard: tensor if shard == 0 else torch.zeros_like(tensor)


def _heads(model: ModelConfig, tp_size: int) -> Cut:
    """Query, key and value heads in equal groups. Where there are more shards than KV heads, neighbours share one."""
    kv_heads = model.num_key_value_heads
    head_counts = (model.num_attention_heads, kv_heads, kv_heads)

    def cut(tensor: torch.Tensor, shard: int) -> torch.Tensor:
        q, k, v = tensor.unflatten(0, (-1, model.head_dim)).split(head_counts)
        kv_shards = min(tp_size, kv_heads)
        kv_shard = shard * kv_shards // tp_size
        parts = q.chunk(tp_size)[shard], k.chunk(kv_shards)[kv_shard], v.chunk(kv_shards)[kv_shard]
        return torch.cat(parts).flatten(0, 1)

    return cut
