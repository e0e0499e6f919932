"""A checkpoint's config, read with checks, and what all families spell the same: RoPE, token ids, activations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trtstream.errors import TrtstreamError
from trtstream.settings import Positive, RopeConfig, Share, Size
from trtstream.typed_json import checked, shown

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
}
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


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
        """A number of 1 to 2**31 - 1."""
        return self._checked(Size, names, default)

    def number(self, *names: str, default: float | None = None, kind: Any = Positive) -> float:
        """A number as the model's field of this ``kind`` takes it."""
        return self._checked(kind, names, default)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers above 0."""
        return self._checked(tuple[Positive, ...], (name,), None)

    def _checked(self, kind: Any, names: tuple[str, ...], default: float | None) -> Any:
        name = next((name for name in names if self.values.get(name) is not None), names[0])
        return checked(kind, self.get(name, default=default), f"{self.where}: {name}")

    def flag(self, name: str, default: bool) -> bool:
        """``default`` if it is absent. A null is false, as in transformers, which asks only whether it is true."""
        value = self.values.get(name, default)
        return False if value is None else checked(bool, value, f"{self.where}: {name}")

    def activation(self, name: str, default: str) -> str:
        value = self.get(name, default=default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.error(f"{name} is {shown(value)}; supported are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def token_ids(self, name: str, default: int | None, vocab_size: int) -> tuple[int, ...]:
        """Token ids (one, several, or none where the config says null). Ids outside the vocabulary, by which some
        checkpoints mean "none", are left out."""
        value = self.values.get(name, default)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool):
                raise self.error(f"{name} is {shown(value)}; it must be a token id or a list of them")
        return tuple(dict.fromkeys(token for token in ids if 0 <= token < vocab_size))

    def with_defaults(self, defaults: dict[str, Any]) -> RawConfig:
        """This config with ``defaults`` for keys that it lacks."""
        return RawConfig(self.where, defaults | self.values)

    def sliding_window(self) -> int | None:
        """How many tokens each query sees, its own included; None for all.

        Raises TrtstreamError where layers differ.
        """
        if not self.get("sliding_window") or not self.flag("use_sliding_window", True):
            return None
        full = checked(int, self.get("max_window_layers", default=0), f"{self.where}: max_window_layers")
        kinds = self.get("layer_types")
        if kinds is None:  # then the first ``full`` layers see everything
            layers = self.integer("num_hidden_layers", "n_layer")
            kinds = ["full_attention"] * (full > 0) + ["sliding_attention"] * (full < layers)
        if not isinstance(kinds, list) or any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
            raise self.error(f"layer_types is {shown(kinds)}; supported are full_attention and sliding_attention")
        if "sliding_attention" not in kinds:
            return None
        if "full_attention" in kinds:
            raise self.error("its layers do not all have the same window (layer_types, max_window_layers)")
        return self.integer("sliding_window")

    def refuse_unsupported(self) -> None:
        """Raise TrtstreamError for a feature that no family supports: quantized weights."""
        quantization = self.get("quantization_config", "compression_config")
        if quantization:
            method = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else quantization
            raise self.error(
                f"the checkpoint is quantized ({shown(method)}), which cannot be read; use the original, unquantized "
                "checkpoint or a .gguf file"
            )

    def rope(self, max_position_embeddings: int, partial_of: int | None = None) -> RopeConfig:
        """RoPE from ``rope_parameters``, or from the older ``rope_theta`` and ``rope_scaling``.

        ``partial_of`` is the size of a head, if the family can rotate a part of it.
        """
        # As in transformers, an empty rope_scaling counts as none.
        parameters = self.get("rope_scaling") or self.get("rope_parameters", default={})
        if not isinstance(parameters, dict):
            raise self.error(f"rope_scaling is {shown(parameters)}; it must be an object")
        # As in transformers, the config's original context takes precedence over the one among the parameters.
        original = self.get(
            "original_max_position_embeddings", default=parameters.get("original_max_position_embeddings")
        )
        raw = RawConfig(f"{self.where}: RoPE", {**parameters, "original_max_position_embeddings": original})
        kind = raw.get("rope_type", "type", default="default")
        kind = "longrope" if kind == "su" else kind  # its first name
        if kind not in ROPE_KINDS:
            raise raw.error(f"the type {shown(kind)} is not supported; supported are {', '.join(ROPE_KINDS)}")
        rope: dict[str, Any] = {
            "kind": kind,
            "theta": raw.number("rope_theta", default=self.get("rope_theta", default=10000.0)),
            "rotary_dim": self._rotary_dim(raw, partial_of),
        }
        if kind in ("linear", "dynamic", "llama3"):
            rope["factor"] = raw.number("factor")
        if kind in ("llama3", "yarn", "longrope"):
            rope["original_max_position_embeddings"] = raw.integer(
                "original_max_position_embeddings", default=max_position_embeddings
            )
        if kind == "llama3":
            rope["low_freq_factor"] = raw.number("low_freq_factor")
            rope["high_freq_factor"] = raw.number("high_freq_factor")
        if kind == "yarn":
            original = rope["original_max_position_embeddings"]
            rope["factor"] = raw.number("factor", default=max_position_embeddings / original)
            rope["truncate"] = raw.flag("truncate", True)
            if raw.get("attention_factor") is not None:
                rope["attention_factor"] = raw.number("attention_factor")
            for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
                if raw.get(name):  # 0 counts as unset, as in transformers
                    rope[name] = raw.number(name)
        if kind == "longrope":
            original = rope["original_max_position_embeddings"]
            factor = raw.number("factor", default=max_position_embeddings / original)
            scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
            rope["attention_factor"] = raw.number("attention_factor", default=scale)
            rope["short_factors"] = raw.numbers("short_factor")
        return RopeConfig(**rope)

    def _rotary_dim(self, rope: RawConfig, head_dim: int | None) -> int | None:
        factor = rope.number(
            "partial_rotary_factor", default=self.number("partial_rotary_factor", default=1.0), kind=Share
        )
        if factor == 1.0:
            return None
        if head_dim is None:
            raise rope.error("partial_rotary_factor must be 1; rotating a part of each head is not supported")
        dim = int(head_dim * factor)
        if dim < 2 or dim % 2 or head_dim % 2:
            raise rope.error(
                f"partial_rotary_factor {factor} of {head_dim} is {dim}; it must be an even number of dimensions"
            )
        return dim
