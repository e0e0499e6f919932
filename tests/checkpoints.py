"""A factory of tiny checkpoints, one variant for everything in which the models of a family differ.

Weights are large (``initializer_range`` 0.2), and norm weights and biases are random too: with the defaults of training
a misplaced bias or an off-by-one sink would hardly move the logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
FALCON: dict[str, Any] = {
    "model_type": "falcon",
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
PHI3: dict[str, Any] = {
    **LLAMA,
    "model_type": "phi3",
    "original_max_position_embeddings": 1024,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0, 1.125, 1.25, 1.5, 2.0, 3.0],
        "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
    },
}
GPT_NEOX: dict[str, Any] = {
    "model_type": "gpt_neox",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}


def _rope(rope_type: str, **parameters: Any) -> dict[str, Any]:
    return {**LLAMA, "rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **parameters}}


VARIANTS: dict[str, dict[str, Any]] = {
    "llama-gqa": LLAMA,
    "llama-mha": {**LLAMA, "num_key_value_heads": 4},
    "llama-mqa": {**LLAMA, "num_key_value_heads": 1},
    "llama-tied": {**LLAMA, "tie_word_embeddings": True},
    "llama-bias": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama-head-dim": {**LLAMA, "head_dim": 24},
    "llama-rope-linear": _rope("linear", factor=4.0),
    "llama-rope-dynamic": _rope("dynamic", factor=2.0),
    # The original context puts one of the eight frequencies into llama3's smooth middle, and some on either side.
    "llama-rope-llama3": _rope(
        "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=1024
    ),
    "llama-rope-yarn": _rope("yarn", factor=4.0, original_max_position_embeddings=1024),
    "mistral": {**LLAMA, "model_type": "mistral", "head_dim": 24, "sliding_window": 64},
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 24},
    # A part of each head rotates, with a scale.
    "phi3": PHI3,
    "falcon-7b": {**FALCON, "hidden_size": 40, "num_attention_heads": 5, "multi_query": True, "parallel_attn": True},
    "falcon-40b": {
        **FALCON,
        "new_decoder_architecture": True,
        "num_attention_heads": 8,
        "num_kv_heads": 2,
        "tie_word_embeddings": False,
    },
    "falcon-11b": {
        **FALCON,
        "new_decoder_architecture": True,
        "num_attention_heads": 8,
        "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
        "ffn_hidden_size": 160,
    },
    # 32 heads: transformers rounds ALiBi's biases to bfloat16, which fewer heads would hide.
    "falcon-rw": {
        **FALCON,
        "hidden_size": 128,
        "num_attention_heads": 32,
        "alibi": True,
        "bias": True,
        "multi_query": False,
        "parallel_attn": False,
    },
    "falcon-mha-parallel": {**FALCON, "multi_query": False, "bias": True},
    "falcon-mqa-sequential": {**FALCON, "parallel_attn": False},
    "gpt-neox": GPT_NEOX,
    # The slopes of 6 heads are those of 8, in another order. Some values are clipped.
    "mpt-7b": {
        "model_type": "mpt",
        "vocab_size": 128,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "max_seq_len": 4096,
        "attn_config": {"clip_qkv": 1.5},
    },
}


def write_checkpoint(
    folder: Path, variant: str, *, max_shard_size: str = "1GB", seed: int = 0, **overrides: Any
) -> Path:
    """Write a random float32 model of the variant into ``folder`` as transformers saves it, and return ``folder``.

    ``overrides`` replace keys of the variant's config. There is no tokenizer.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**VARIANTS[variant], "initializer_range": 0.2, **overrides})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(mean=0.0 if name.endswith("bias") else 1.0, std=0.2)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return Path(folder)
