"""A model's config and the settings of its engine: the dataclasses that every room shares.

They are stored in an engine's ``config.json``, so their field names are the keys that users see there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from trtstream.errors import TrtstreamError
from trtstream.targets import TARGETS
from trtstream.typed_json import Choice, Range

FORMAT_VERSION = 5
Size = Annotated[int, Range(1)]
TokenId = Annotated[int, Range(0)]
Positive = Annotated[float, Range(1e-30, 1e30)]
NormEps = Annotated[float, Range(0, 1)]
Share = Annotated[float, Range(0, 1)]
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: base and scaling, as transformers defines them.

    ``kind`` is ``default``, ``linear``, ``dynamic``, ``llama3``, ``yarn`` or ``longrope``; the other fields are None
    where the kind has no use for them. ``theta`` is the base; the context lengths are in tokens. ``rotary_dim`` is how
    many dimensions of a head rotate; None for all. ``short_factors`` are longrope's, one for each frequency.
    """

    kind: Annotated[str, Choice(("default", "linear", "dynamic", "llama3", "yarn", "longrope"))] = "default"
    theta: Positive = 10000.0
    factor: Positive | None = None
    original_max_position_embeddings: Size | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    mscale: Positive | None = None
    mscale_all_dim: Positive | None = None
    truncate: bool = True
    rotary_dim: Size | None = None
    short_factors: tuple[Positive, ...] | None = None

    def validate(self) -> None:
        """Raise TrtstreamError if the kind lacks a number that it needs, or two numbers contradict each other."""
        needed: dict[str, tuple[str, ...]] = {
            "linear": ("factor",),
            "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
            "yarn": ("factor", "original_max_position_embeddings"),
            "longrope": ("short_factors", "original_max_position_embeddings", "attention_factor"),
        }
        for name in needed.get(self.kind, ()):
            if getattr(self, name) is None:
                raise TrtstreamError(f"rope has kind {self.kind!r} without {name}")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and high <= low:
            raise TrtstreamError(f"rope has high_freq_factor {high}; it must be above low_freq_factor {low}")
        if self.kind == "yarn" and self.theta <= 1:
            raise TrtstreamError(f"rope has theta {self.theta}; yarn needs a rope_theta above 1")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder, whatever family and checkpoint it came from.

    Layers compute, with ``norm`` either RMSNorm (``rms``) or LayerNorm (``layer``):

    * ``residual = "sequential"``: ``x += attention(attention_norm(x)); x += mlp(mlp_norm(x))``
    * ``residual = "parallel"``: ``x += attention(attention_norm(x)) + mlp(mlp_norm(x))``, where ``mlp_norm`` is
      ``attention_norm`` itself if ``shared_norm``.

    ``gated_mlp``: ``down(act(gate(x)) * up(x))``, else ``down(act(up(x)))``; ``hidden_act`` is ``silu``, ``gelu``,
    ``gelu_pytorch_tanh`` or ``relu``. ``qk_norm``: the query and the key of each head are normalized, as ``norm``
    says, before they are rotated. ``clip_qkv`` is the largest absolute value that queries, keys and values keep; None
    for any. ``rope`` is None for ALiBi models, of which ``alibi_slopes`` are what a token of distance takes off the
    scaled score in each head; None for Falcon's. ``sliding_window`` is how many tokens a query was trained to see, its
    own included; None for all.
    """

    architecture: str
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    max_position_embeddings: Size
    norm: Annotated[str, Choice(("rms", "layer"))]
    norm_eps: NormEps
    hidden_act: Annotated[str, Choice(("silu", "gelu", "gelu_pytorch_tanh", "relu"))]
    gated_mlp: bool
    residual: Annotated[str, Choice(("sequential", "parallel"))]
    shared_norm: bool
    tie_word_embeddings: bool
    rope: RopeConfig | None
    bos_token_id: TokenId | None
    eos_token_ids: tuple[TokenId, ...]
    sliding_window: Size | None = None
    qk_norm: bool = False
    alibi_slopes: tuple[Positive, ...] | None = None
    clip_qkv: Positive | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def validate(self) -> None:
        """Raise TrtstreamError if the fields contradict each other."""
        if self.num_attention_heads % self.num_key_value_heads:
            raise TrtstreamError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.rope is not None:
            self.rope.validate()
            if self.head_dim % 2:
                raise TrtstreamError(f"head_dim is {self.head_dim}; RoPE needs an even number")
            rotary_dim, factors = self.rope.rotary_dim or self.head_dim, self.rope.short_factors
            if rotary_dim % 2 or rotary_dim > self.head_dim:
                raise TrtstreamError(
                    f"rope has rotary_dim {rotary_dim}; it must be an even number, at most head_dim {self.head_dim}"
                )
            if factors is not None and len(factors) != rotary_dim // 2:
                raise TrtstreamError(f"rope has {len(factors)} short_factors; expected {rotary_dim // 2}")
        if self.alibi_slopes is not None and (
            self.rope is not None or len(self.alibi_slopes) != self.num_attention_heads
        ):
            raise TrtstreamError(
                f"there are {len(self.alibi_slopes)} alibi_slopes; without rope one is needed for each of the "
                f"{self.num_attention_heads} attention heads, and with it none"
            )
        if self.shared_norm and self.residual != "parallel":
            raise TrtstreamError(f"shared_norm is true with residual {self.residual!r}; it needs 'parallel'")
        for token in (*self.eos_token_ids, *(() if self.bos_token_id is None else (self.bos_token_id,))):
            if token >= self.vocab_size:
                raise TrtstreamError(
                    f"bos_token_id or eos_token_ids has {token}, outside the vocabulary of {self.vocab_size}"
                )


@dataclass(frozen=True)
class TensorrtLlmOptions:
    """Options of the ``tensorrt-llm`` target: ``tp_size * pp_size`` GPUs, a release, and the length of requests.

    ``version`` is the release of TensorRT-LLM (None: the installed one, or a default); ``max_seq_len`` the tokens of a
    request, prompt and answer (None: the checkpoint's context, or two windows).
    """

    tp_size: Size = 1
    pp_size: Size = 1
    version: str | None = None
    max_seq_len: Size | None = None

    @classmethod
    def of(cls, build: BuildConfig) -> TensorrtLlmOptions:
        """A build's options: the defaults if it has none."""
        return cls() if build.tensorrt_llm is None else build.tensorrt_llm

    @property
    def ranks(self) -> int:
        """How many GPUs share the model."""
        return self.tp_size * self.pp_size

    def validate(self, max_attention_window: int) -> None:
        """Raise TrtstreamError for impossible values, with prompts of up to ``max_attention_window`` tokens."""
        _check_at_least_1(self, "tp_size", "pp_size")
        if self.max_seq_len is not None and self.max_seq_len <= max_attention_window:
            raise TrtstreamError(
                f"max_seq_len is {self.max_seq_len}, which leaves no room for an answer after a prompt of "
                f"max_attention_window {max_attention_window} tokens; raise it"
            )


@dataclass(frozen=True)
class BuildConfig:
    """The sizes and number formats that an engine is built for.

    A session sees ``C = S + R`` tokens: its S <= ``max_sink_token_length`` sinks and a ring of
    ``R = max_attention_window - max_sink_token_length`` recent ones. ``kv_dtype`` is None for a
    KV cache in ``dtype``, and ``tensorrt_llm`` is None for other targets.
    """

    max_batch_size: Size = 8
    max_num_tokens: Size = 256
    max_attention_window: Size = 1024
    sink_token_length: Annotated[int, Range(0)] = 4
    max_sink_token_length: Annotated[int, Range(0)] = 4
    dtype: str = "float32"
    quantization: str = "none"
    kv_dtype: str | None = None
    sink_token: TokenId | None = None
    tensorrt_llm: TensorrtLlmOptions | None = None

    @property
    def ring(self) -> int:
        """R, the number of most recent tokens that a session keeps."""
        return self.max_attention_window - self.max_sink_token_length

    def validate(self, target: str) -> None:
        """Raise TrtstreamError if the values cannot describe an engine for ``target``."""
        limits = TARGETS.get(target)
        if limits is None:
            raise TrtstreamError(f"target is {target!r}; this trtstream knows {', '.join(TARGETS)}")
        _check_at_least_1(self, "max_batch_size", "max_num_tokens", "max_attention_window")
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
        if self.dtype not in limits.dtypes:
            raise TrtstreamError(f"dtype is {self.dtype!r}; the {target} target has {', '.join(limits.dtypes)}")
        if self.quantization not in limits.quantizations:
            raise TrtstreamError(
                f"quantization is {self.quantization!r}; the {target} target has {', '.join(limits.quantizations)}"
            )
        if self.kv_dtype is not None and self.kv_dtype not in limits.kv_dtypes:
            others = " or ".join((*limits.kv_dtypes, "the engine's dtype"))
            raise TrtstreamError(f"kv_dtype is {self.kv_dtype!r}; the {target} target keeps its KV cache in {others}")
        has_own_sinks = self.max_sink_token_length != self.sink_token_length or self.sink_token is not None
        if has_own_sinks and not limits.sinks_per_session:
            raise TrtstreamError(
                f"max_sink_token_length and sink_token are not for the {target} target, where all sessions have the "
                "same sinks; give sink_token_length alone"
            )
        if self.tensorrt_llm is not None:
            if not limits.tensorrt_llm_options:
                raise TrtstreamError(
                    "tp_size, pp_size, tensorrt_llm_version and max_seq_len are for the tensorrt-llm target only"
                )
            self.tensorrt_llm.validate(self.max_attention_window)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def default_window(model: ModelConfig) -> int:
    """The default W for a model: 1,024 tokens, or its context or its sliding window if that is shorter."""
    context = _trained_context(model)
    return min(BuildConfig.max_attention_window, context, model.sliding_window or context)


def _trained_context(model: ModelConfig) -> int:
    """How many tokens a model computes with one rotation: beyond its original context longrope has another."""
    if model.rope is not None and model.rope.kind == "longrope":
        return min(model.max_position_embeddings, model.rope.original_max_position_embeddings or 1)
    return model.max_position_embeddings


def check_against_model(build: BuildConfig, model: ModelConfig, force: bool) -> None:
    """Raise TrtstreamError where the sizes do not suit the model; ``force`` allows a window beyond its context."""
    window, trained = build.max_attention_window, _trained_context(model)
    if window > trained and model.rope is not None and model.rope.kind in ("dynamic", "longrope"):
        raise TrtstreamError(
            f"--max-attention-window {window} is beyond the checkpoint's context of {trained}, and its "
            f"{model.rope.kind} RoPE scaling would depend on the length there; use at most {trained}"
        )
    if window > trained and not force:
        raise TrtstreamError(
            f"--max-attention-window {window} is beyond the checkpoint's trained context of {trained}; use at most "
            f"{trained}, or --force"
        )
    if model.sliding_window is not None and build.ring > model.sliding_window:
        raise TrtstreamError(
            f"--max-attention-window {window} keeps {build.ring} recent tokens, and the checkpoint's layers see "
            f"{model.sliding_window} (sliding_window); use at most {model.sliding_window + build.max_sink_token_length}"
        )
    if build.sink_token is not None:
        if not 0 <= build.sink_token < model.vocab_size:
            raise TrtstreamError(f"--sink-token {build.sink_token} is outside the vocabulary of {model.vocab_size}")
        if build.sink_token_length < 1:
            raise TrtstreamError("--sink-token needs --sink-token-length 1 or more")


def _check_at_least_1(settings: object, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise TrtstreamError(f"{name} is {getattr(settings, name)}; it must be at least 1")
