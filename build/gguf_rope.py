"""RoPE as a GGUF file's metadata spell it, in Hugging Face's spelling."""

from __future__ import annotations

from typing import Any

import torch

from trtstream.build.families.raw_config import RawConfig
from trtstream.plugins.positions import inverse_frequencies
from trtstream.settings import RopeConfig
from trtstream.typed_json import shown

DIVISORS = "rope_freqs.weight"
SHORT_FACTORS = "rope_factors_short.weight"
LONG_FACTORS = "rope_factors_long.weight"
ROPE_TENSORS = (DIVISORS, SHORT_FACTORS, LONG_FACTORS)
KEYS = {
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}
LONGROPE_KEYS = {"rope.scaling.attn_factor"}


def rope_parameters(metadata: RawConfig, head_dim: int, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The ``rope_parameters`` of a config.

    ``metadata`` has no prefix of the architecture before its keys; ``tensors`` are the file's, of
    `ROPE_TENSORS`. Raises TrtstreamError for what is not supported.
    """
    known = KEYS | LONGROPE_KEYS if SHORT_FACTORS in tensors else KEYS
    unknown = sorted(key for key in metadata.values if key.startswith("rope.") and key not in known)
    if unknown:
        raise metadata.error(f"{shown(unknown[0])} is not supported; use the Hugging Face checkpoint")
    kind = metadata.get("rope.scaling.type", default="none")
    theta = metadata.number("rope.freq_base", default=10000.0)
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": theta}
    dim = metadata.integer("rope.dimension_count", default=head_dim)
    if dim != head_dim:
        rope["partial_rotary_factor"] = (dim + 0.5) / head_dim  # of which the whole part is dim, whatever the rounding
    if tensors and kind not in ("none", "longrope"):
        raise metadata.error(f"{next(iter(tensors))} together with RoPE scaling {shown(kind)} is not supported")
    if DIVISORS in tensors:
        return rope | _llama3_scaling(metadata, theta, head_dim, tensors[DIVISORS].double())
    if SHORT_FACTORS in tensors:
        return rope | {
            "rope_type": "longrope",
            "short_factor": tensors[SHORT_FACTORS].flatten().tolist(),
            "attention_factor": metadata.number("rope.scaling.attn_factor"),
            "original_max_position_embeddings": metadata.integer("rope.scaling.original_context_length"),
        }
    if LONG_FACTORS in tensors:
        raise metadata.error(f"{LONG_FACTORS} is there without {SHORT_FACTORS}; convert the model again")
    if kind == "none":
        # The oldest files have the factor alone.
        factor = metadata.number("rope.scale_linear", default=1.0)
        return rope | ({"rope_type": "default"} if factor == 1.0 else {"rope_type": "linear", "factor": factor})
    rope["factor"] = metadata.number("rope.scaling.factor")
    if kind == "yarn":
        rope["original_max_position_embeddings"] = metadata.integer("rope.scaling.original_context_length")
        rope["beta_fast"] = metadata.number("rope.scaling.yarn_beta_fast", default=32.0)
        rope["beta_slow"] = metadata.number("rope.scaling.yarn_beta_slow", default=1.0)
    return rope


def _llama3_scaling(metadata: RawConfig, theta: float, head_dim: int, divisors: torch.Tensor) -> dict[str, Any]:
    """Of llama3 scaling GGUF keeps only the divisor of each frequency. Every Llama 3 release has the same bounds, so
    the largest divisor determines the rest; any other scaling is refused."""
    factor, low, high, original = round(float(divisors.max()), 3), 1.0, 4.0, 8192
    scaled = RopeConfig("llama3", theta, factor, original, low_freq_factor=low, high_freq_factor=high)
    expected = inverse_frequencies(RopeConfig(theta=theta), head_dim)[0] / inverse_frequencies(scaled, head_dim)[0]
    if divisors.shape != (head_dim // 2,) or not torch.allclose(divisors, expected, rtol=1e-3):
        raise metadata.error(f"{DIVISORS} is not the RoPE scaling of a Llama 3; use the Hugging Face checkpoint")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
