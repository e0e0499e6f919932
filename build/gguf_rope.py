"""RoPE as a GGUF file's metadata spell it, in Hugging Face's spelling."""

from __future__ import annotations

from typing import Any

import torch

from trtstream.build.families.raw_config import RawConfig
from trtstream.plugins.positions import inverse_frequencies
from trtstream.settings import RopeConfig
from trtstream.typed_json import shown

DIVISORS = "rope_freqs.weight"
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


def rope_parameters(metadata: RawConfig, head_dim: int, divisors: torch.Tensor | None) -> dict[str, Any]:
    """The ``rope_parameters`` of a config.

    ``metadata`` has no prefix of the architecture before its keys; ``divisors`` [head_dim / 2] is the file's tensor
    `DIVISORS`, None if it has none. Raises TrtstreamError for what is not supported.
    """
    unknown = sorted(key for key in metadata.values if key.startswith("rope.") and key not in KEYS)
    if unknown:
        raise metadata.error(f"{shown(unknown[0])} is not supported; use the Hugging Face checkpoint")
    kind = metadata.get("rope.scaling.type", default="none")
    theta = metadata.number("rope.freq_base", default=10000.0)
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": theta}
    if divisors is not None:
        if kind != "none":
            raise metadata.error(f"{DIVISORS} together with RoPE scaling {shown(kind)} is not supported")
        return rope | _llama3_scaling(metadata, theta, head_dim, divisors.double())
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
