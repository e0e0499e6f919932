"""The ``config.json`` of a checkpoint in TensorRT-LLM's format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trtstream.build.tensorrt_llm.releases import Release
from trtstream.errors import TrtstreamError
from trtstream.settings import BuildConfig, ModelConfig, RopeConfig, TensorrtLlmOptions

ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_new", "relu": "relu"}
FALCON_NORM_EPS, FALCON_ROTARY_BASE = 1e-5, 10000.0


def checkpoint_config(
    model: ModelConfig, tensor_names: list[str], build: BuildConfig, release: Release
) -> dict[str, Any]:
    """The values that ``release``'s loader reads. Raises TrtstreamError, with the reason, for what it cannot run."""
    if model.architecture not in FAMILY_FIELDS:
        raise TrtstreamError(
            f"the tensorrt-llm target does not support {model.architecture}; supported are {', '.join(FAMILY_FIELDS)}: "
            "use another --target"
        )
    options = TensorrtLlmOptions.of(build)
    biased = {name.removeprefix("layers.0.") for name in tensor_names if name.endswith(".bias")}
    return {
        "architecture": UPSTREAM.get(model.architecture, model.architecture),
        "dtype": build.dtype,
        "logits_dtype": "float32",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "head_size": model.head_dim,
        "max_position_embeddings": model.max_position_embeddings,
        "hidden_act": ACTIVATIONS[model.hidden_act],
        "norm_epsilon": model.norm_eps,
        "position_embedding_type": "alibi_with_scale" if model.rope is None else "rope_gpt_neox",
        "qk_layernorm": False,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "mapping": {
            "world_size": options.ranks,
            "tp_size": options.tp_size,
            "pp_size": options.pp_size,
        },
        # Weights stay in floating point: every release quantizes them while it loads them, into the layout of its GPU.
        "quantization": {
            "quant_algo": "W8A16" if build.quantization == "int8" else None,
            "kv_cache_quant_algo": None,
        },
        **release.fixed_fields,
        **FAMILY_FIELDS[model.architecture](model, biased, build, release),
    }


def _llama(model: ModelConfig, biased: set[str], build: BuildConfig, release: Release) -> dict[str, Any]:
    assert model.rope is not None, "a Llama has RoPE"
    return {
        "attn_bias": "qkv.bias" in biased,
        "mlp_bias": "gate_up.bias" in biased,
        "rotary_base": model.rope.theta,
        "rotary_scaling": _rotary_scaling(model.rope, build.sink_token_length, release),
        **release.llama_fields,
    }


def _falcon(model: ModelConfig, biased: set[str], build: BuildConfig, release: Release) -> dict[str, Any]:
    _check_falcon(model, build, release)
    rotary_base = {"rotary_base": model.rope.theta} if release.falcon_rotary_base and model.rope is not None else {}
    return {
        "bias": "qkv.bias" in biased,
        "parallel_attention": model.residual == "parallel",
        # Upstream's name for parallel blocks with a norm each for attention and MLP.
        "new_decoder_architecture": model.residual == "parallel" and not model.shared_norm,
        **rotary_base,
    }


FAMILY_FIELDS: dict[str, Callable[[ModelConfig, set[str], BuildConfig, Release], dict[str, Any]]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _llama,
    "FalconForCausalLM": _falcon,
}
"""By architecture: the fields that only this one's config has, from the model, the names of a layer's biases, the build
and the release. Raises TrtstreamError for what upstream's model cannot compute."""


UPSTREAM = {"MistralForCausalLM": "LlamaForCausalLM"}
"""Architectures that upstream computes as another one, which has its StreamingLLM. A Mistral's sliding window is left
out, as the engine's own window is no larger."""


def _rotary_scaling(rope: RopeConfig, sink_token_length: int, release: Release) -> dict[str, Any] | None:
    if rope.kind not in release.rope_kinds:
        raise TrtstreamError(
            f"TensorRT-LLM {release.name} has no {rope.kind} RoPE scaling for Llama, only "
            f"{', '.join(release.rope_kinds)}; use another release or another --target"
        )
    if rope.kind == "llama3" and sink_token_length > 0:
        raise TrtstreamError(
            "TensorRT-LLM's StreamingLLM (its kernel shiftKCache) rotates cached keys without llama3's frequencies and "
            "queries with them; give --sink-token-length 0 for a plain cyclic window, or use another --target"
        )
    # Upstream's own "dynamic" multiplies the frequencies by the factor. Inside the trained context, which the window
    # never leaves, the checkpoint's scales nothing.
    if rope.kind in ("default", "dynamic"):
        return None
    scaling = {"type": rope.kind, "factor": rope.factor}
    if rope.kind == "llama3":
        scaling |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
        }
    return scaling


def _check_falcon(model: ModelConfig, build: BuildConfig, release: Release) -> None:
    """Raise TrtstreamError for a model that upstream's FalconForCausalLM has no settings for."""
    if build.sink_token_length > 0:
        raise TrtstreamError(
            "TensorRT-LLM asserts that StreamingLLM is for Llama only: give --sink-token-length 0 for a Falcon with a "
            "plain cyclic window, or use --target cpu or cuda"
        )
    if model.rope is not None and model.rope.kind not in ("default", "dynamic"):
        raise TrtstreamError(
            f"TensorRT-LLM's Falcon has no RoPE scaling, and the checkpoint has {model.rope.kind}; "
            "use --target cpu or cuda"
        )
    if model.rope is not None and model.rope.theta != FALCON_ROTARY_BASE and not release.falcon_rotary_base:
        raise TrtstreamError(
            f"TensorRT-LLM {release.name}'s Falcon has a fixed RoPE base of {FALCON_ROTARY_BASE:g}, and the "
            f"checkpoint's is {model.rope.theta:g}; use --tensorrt-llm-version 0.17 or later, or another --target"
        )
    if model.norm_eps != FALCON_NORM_EPS:
        raise TrtstreamError(
            f"TensorRT-LLM's Falcon has a fixed layer_norm_epsilon of {FALCON_NORM_EPS:g}, and the checkpoint's is "
            f"{model.norm_eps:g}; use --target cpu or cuda"
        )
