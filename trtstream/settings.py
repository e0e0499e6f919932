"""What a model is and how its engine is built: the two dataclasses that every room shares.

Both are stored in an engine's ``config.json``, so their field names are the keys that users see there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from trtstream.errors import TrtstreamError

FORMAT_VERSION = 1
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZATIONS = ("none", "int8", "int4")


@dataclass(frozen=True)
class Target:
    """The number formats that a target's engines have; the first dtype is its default.

    ``writes_first``: a chunk is written to the cache before it attends, so that a ring needs spare slots.
    """

    dtypes: tuple[str, ...]
    quantizations: tuple[str, ...] = ("none",)
    writes_first: bool = False


TARGETS = {
    "cpu": Target(("float32", "bfloat16")),
    "cuda": Target(("bfloat16", "float16", "float32"), QUANTIZATIONS),
    "tensorrt": Target(("bfloat16", "float16", "float32"), QUANTIZATIONS, writes_first=True),
    "tensorrt-rtx": Target(("bfloat16", "float16", "float32"), QUANTIZATIONS, writes_first=True),
    "tensorrt-llm": Target(("bfloat16", "float16"), ("none", "int8")),
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: base and scaling, as transformers defines them.

    ``kind`` is ``default``, ``linear``, ``dynamic``, ``llama3`` or ``yarn``; the other fields are None where the kind
    has no use for them. ``theta`` is the base; the context lengths are in tokens.
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama or Falcon family, whatever checkpoint it came from.

    Layers compute, with ``norm`` either RMSNorm (``rms``) or LayerNorm (``layer``):

    * ``residual = "sequential"``: ``x += attention(attention_norm(x)); x += mlp(mlp_norm(x))``
    * ``residual = "parallel"``: ``x += attention(attention_norm(x)) + mlp(mlp_norm(x))``, where ``mlp_norm`` is
      ``attention_norm`` itself if ``shared_norm``.

    ``gated_mlp``: ``down(act(gate(x)) * up(x))``, else ``down(act(up(x)))``; ``hidden_act`` is ``silu``, ``gelu``,
    ``gelu_pytorch_tanh`` or ``relu``. ``rope`` is None for ALiBi models.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    norm: str
    norm_eps: float
    hidden_act: str
    gated_mlp: bool
    residual: str
    shared_norm: bool
    tie_word_embeddings: bool
    rope: RopeConfig | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        values = _known_fields(cls, values)
        rope = values.get("rope")
        return cls(
            **{
                **values,
                "rope": None if rope is None else RopeConfig(**_known_fields(RopeConfig, rope)),
                "eos_token_ids": tuple(values["eos_token_ids"]),
            }
        )


@dataclass(frozen=True)
class BuildConfig:
    """The sizes and number formats that an engine is built for.

    A session sees ``C = S + R`` tokens: its S <= ``max_sink_token_length`` sinks and a ring of
    ``R = max_attention_window - max_sink_token_length`` recent ones. The ``tensorrt-llm`` target alone divides a model
    among ``tp_size * pp_size`` GPUs, and builds for a release of TensorRT-LLM.
    """

    max_batch_size: int = 8
    max_num_tokens: int = 256
    max_attention_window: int = 1024
    sink_token_length: int = 4
    max_sink_token_length: int = 4
    dtype: str = "float32"
    quantization: str = "none"
    sink_token: int | None = None
    tp_size: int = 1
    pp_size: int = 1
    tensorrt_llm_version: str | None = None
    max_seq_len: int | None = None

    @property
    def ring(self) -> int:
        """R, the number of most recent tokens that a session keeps."""
        return self.max_attention_window - self.max_sink_token_length

    def validate(self, target: str) -> None:
        """Raise TrtstreamError if the values cannot describe an engine for ``target``."""
        if target not in TARGETS:
            raise TrtstreamError(f"target is {target!r}; this trtstream knows {', '.join(TARGETS)}")
        for name in ("max_batch_size", "max_num_tokens", "max_attention_window", "tp_size", "pp_size"):
            if getattr(self, name) < 1:
                raise TrtstreamError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.sink_token_length < 0:
            raise TrtstreamError(f"sink_token_length is {self.sink_token_length}; it must be 0 or more")
        if self.max_sink_token_length < self.sink_token_length:
            raise TrtstreamError(
                f"max_sink_token_length is {self.max_sink_token_length}, below "
                f"sink_token_length {self.sink_token_length}; raise it"
            )
        if self.ring < 1:
            raise TrtstreamError(
                f"max_sink_token_length is {self.max_sink_token_length} and max_attention_window "
                f"{self.max_attention_window}: no room for recent tokens; use a larger window or fewer sinks"
            )
        if target == "tensorrt-llm":
            if self.max_sink_token_length != self.sink_token_length or self.sink_token is not None:
                raise TrtstreamError(
                    "max_sink_token_length and sink_token are not for the tensorrt-llm target, where all sessions have "
                    "the same sinks; give sink_token_length alone"
                )
            if self.max_seq_len is not None and self.max_seq_len <= self.max_attention_window:
                raise TrtstreamError(
                    f"max_seq_len is {self.max_seq_len}, which leaves no room for an answer behind a prompt of "
                    f"max_attention_window {self.max_attention_window} tokens; raise it"
                )
        elif (self.tp_size, self.pp_size, self.tensorrt_llm_version, self.max_seq_len) != (1, 1, None, None):
            raise TrtstreamError(
                "tp_size, pp_size, tensorrt_llm_version and max_seq_len are for the tensorrt-llm target only"
            )
        formats = TARGETS[target]
        if self.dtype not in formats.dtypes:
            raise TrtstreamError(f"dtype is {self.dtype!r}; the {target} target has {', '.join(formats.dtypes)}")
        if self.quantization not in formats.quantizations:
            raise TrtstreamError(
                f"quantization is {self.quantization!r}; the {target} target has {', '.join(formats.quantizations)}"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BuildConfig:
        return cls(**_known_fields(cls, values))


def _known_fields(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise TrtstreamError(
            f"config.json has the unknown {cls.__name__} field {unknown[0]!r}; rebuild the engine with this version"
        )
    return values
