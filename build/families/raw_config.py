"""A checkpoint's config, read with checks, and what all families spell the same: RoPE, token ids, activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trtstream.errors import TrtstreamError
from trtstream.settings import RopeConfig

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
}
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True)
class RawConfig:
    """A config in Hugging Face's spelling. ``where`` is the file that errors name.

    Every reader raises TrtstreamError for a value that is absent (without a default) or of the wrong kind.
    A null counts as absent, as it does in transformers, except for a `flag`.
    """

    where: str
    values: dict[str, Any]

    def error(self, message: str) -> TrtstreamError:
        return TrtstreamError(f"{self.where}: {message}")

    def get(self, *names: str, default: Any = None) -> Any:
        """The value of the first of ``names`` that has one; several are old and new names of the same thing."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), default)

    def integer(self, *names: str, default: int | None = None) -> int:
        value = self.get(*names, default=default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            raise self.error(f"{names[0]} is {value!r}; it must be a whole number of at least 1")
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        value = self.get(*names, default=default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            raise self.error(f"{names[0]} is {value!r}; it must be a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """``default`` if it is absent. A null is false, as in transformers, which asks only whether it is true."""
        value = self.values.get(name, default)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{name} is {value!r}; it must be true or false")
        return bool(value)

    def activation(self, name: str, default: str) -> str:
        value = self.get(name, default=default)
        if str(value) not in ACTIVATIONS:
            raise self.error(f"{name} is {value!r}; supported are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def token_ids(self, name: str, default: int, vocab_size: int) -> tuple[int, ...]:
        """Token ids (one, several, or none where the config says null). Ids outside the vocabulary, by which some
        checkpoints mean "none", are left out."""
        value = self.values.get(name, default)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool):
                raise self.error(f"{name} is {value!r}; it must be a token id or a list of them")
        return tuple(dict.fromkeys(token for token in ids if 0 <= token < vocab_size))

    def refuse_unsupported(self) -> None:
        """Raise TrtstreamError for a feature that no family supports: quantized weights, a sliding window."""
        quantization = self.get("quantization_config", "compression_config")
        if quantization:
            method = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else quantization
            raise self.error(
                f"the checkpoint is quantized ({method}), which cannot be read; use the original, unquantized "
                "checkpoint or a .gguf file"
            )
        if self.get("sliding_window") and self.get("use_sliding_window", default=True):
            raise self.error(
                f"sliding_window is {self.get('sliding_window')!r}; models with a sliding window are not supported"
            )

    def rope(self, max_position_embeddings: int) -> RopeConfig:
        """RoPE from ``rope_parameters``, or from the older ``rope_theta`` and ``rope_scaling``."""
        # As in transformers, an empty rope_scaling counts as none.
        parameters = self.get("rope_scaling") or self.get("rope_parameters", default={})
        if not isinstance(parameters, dict):
            raise self.error(f"rope_scaling is {parameters!r}; it must be an object")
        # As in transformers, the config's original context takes precedence over the one among the parameters.
        original = self.get(
            "original_max_position_embeddings", default=parameters.get("original_max_position_embeddings")
        )
        raw = RawConfig(f"{self.where}: RoPE", {**parameters, "original_max_position_embeddings": original})
        kind = raw.get("rope_type", "type", default="default")
        if kind not in ROPE_KINDS:
            raise raw.error(f"the type {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}")
        if self.get("partial_rotary_factor", default=raw.get("partial_rotary_factor", default=1.0)) != 1.0:
            raise raw.error("partial_rotary_factor must be 1; rotating a part of each head is not supported")
        rope = {"kind": kind, "theta": raw.number("rope_theta", default=self.get("rope_theta", default=10000.0))}
        if kind in ("linear", "dynamic", "llama3"):
            rope["factor"] = raw.number("factor")
        if kind in ("llama3", "yarn"):
            rope["original_max_position_embeddings"] = raw.integer(
                "original_max_position_embeddings", default=max_position_embeddings
            )
        if kind == "llama3":
            rope["low_freq_factor"] = raw.number("low_freq_factor")
            rope["high_freq_factor"] = raw.number("high_freq_factor")
            if rope["high_freq_factor"] <= rope["low_freq_factor"]:
                raise raw.error("high_freq_factor must be above low_freq_factor")
        if kind == "yarn":
            original = rope["original_max_position_embeddings"]
            rope["factor"] = raw.number("factor", default=max_position_embeddings / original)
            rope["truncate"] = raw.flag("truncate", True)
            if raw.get("attention_factor") is not None:
                rope["attention_factor"] = raw.number("attention_factor")
            for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
                if raw.get(name):  # 0 counts as unset, as in transformers
                    rope[name] = raw.number(name)
        return RopeConfig(**rope)
