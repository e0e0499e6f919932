"""What a model's config says of the tensors in an engine's weights file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtstream.errors import TrtstreamError
from trtstream.plugins.block_weight import BLOCK_FORMATS
from trtstream.settings import ModelConfig
from trtstream.typed_json import shown

FLOATS = ("F32", "F16", "BF16")
"""Of safetensors' names of dtypes, those of the weights that are not quantized."""


@dataclass(frozen=True)
class Stored:
    """A tensor's entry in a safetensors header."""

    dtype: str
    shape: tuple[int, ...]


def check_tensors(path: Path, model: ModelConfig, tensors: Mapping[str, Stored]) -> None:
    """Raise TrtstreamError for a tensor in ``path`` that the model lacks, or whose shape or dtype is another one there.

    The columns of a quantized projection, one with ``scales``, depend on its format and are not checked.
    """

    def error(message: str) -> TrtstreamError:
        return TrtstreamError(f"{path}: {message}; rebuild the engine")

    projections = _projections(model)
    layers = {f"layers.{i}" for i in range(model.num_hidden_layers)}
    dtype = tensors["norm.weight"].dtype if "norm.weight" in tensors else None
    for name, stored in tensors.items():
        module, _, kind = name.rpartition(".")
        layer, _, part = module.rpartition(".")
        if part not in projections or (layer and layer not in layers):
            raise error(f"config.json's model has no tensor {shown(name)}")
        rows, columns = projections[part]
        if kind in BLOCK_FORMATS and columns is not None:
            if stored != Stored("U8", (rows, BLOCK_FORMATS[kind].row_bytes(columns))):
                raise error(f"{name} is {stored.dtype} {stored.shape}; config.json gives it {rows} rows of {columns}")
            continue
        if kind not in ("weight", "bias"):
            continue
        wanted = (rows,) if columns is None or kind == "bias" else (rows, columns)
        if kind == "weight" and f"{module}.scales" in tensors:
            if stored.shape[:1] != (rows,):
                raise error(f"{name} has shape {stored.shape}; config.json gives it {rows} rows")
        elif stored.shape != wanted:
            raise error(f"{name} has shape {stored.shape}; config.json gives {wanted}")
        elif stored.dtype != dtype or dtype not in FLOATS:
            raise error(f"{name} has dtype {stored.dtype}; all weights have one of {', '.join(FLOATS)}")


def _projections(model: ModelConfig) -> dict[str, tuple[int, int | None]]:
    """Rows and columns of each weight; None for the columns of a norm."""
    hidden, queries = model.hidden_size, model.num_attention_heads * model.head_dim
    inner = model.intermediate_size
    norms = ["norm", "attention_norm", *([] if model.shared_norm else ["mlp_norm"])]
    up = ("gate_up", 2 * inner) if model.gated_mlp else ("up", inner)
    return {
        **dict.fromkeys(norms, (hidden, None)),
        **(dict.fromkeys(("q_norm", "k_norm"), (model.head_dim, None)) if model.qk_norm else {}),
        "embedding": (model.vocab_size, hidden),
        **({} if model.tie_word_embeddings else {"lm_head": (model.vocab_size, hidden)}),
        "qkv": (queries + 2 * model.num_key_value_heads * model.head_dim, hidden),
        "attention_output": (hidden, queries),
        up[0]: (up[1], hidden),
        "down": (hidden, inner),
    }
