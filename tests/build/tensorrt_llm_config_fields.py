"""The fields of a checkpoint's config.json that each TensorRT-LLM release reads, and the JSON types they take.

Read in https://github.com/NVIDIA/TensorRT-LLM, at these commits:

* 0.10: 9bd15f1937f52658fb116f30d58fea786ce5d03b (v0.10.0), models/modeling_utils.py (PretrainedConfig.from_dict),
  models/llama/model.py and models/falcon/model.py (check_config), mapping.py
* 0.12: 28fb9aacaa5a05494635194a9cbb264da9a744bd (v0.12.0), models/modeling_utils.py, models/llama/config.py,
  models/falcon/config.py, mapping.py
* 0.17: be1788106245496872d18e702978e59b6bfd50e0 (0.17.0.dev2024121700, main's last before the release), the same files
* 1.0, the nearest versions of 2025 that could be read: models/modeling_utils.py at
  01ea6d79d454bb3ab10c7510a6f706ba039090c2, models/llama/config.py at 04100fd0a70976e86e0ac117f34942d06c21545d,
  mapping.py at 05ebebb2c1d34320db9019f2b7ace6009a67e997; models/falcon as for 0.17
"""

from __future__ import annotations

from dataclasses import dataclass

Types = tuple[type, ...]
Null = type(None)
NULL_OR_INT, NULL_OR_STR = (int, Null), (str, Null)

REQUIRED: dict[str, Types] = {
    "architecture": (str,),
    "dtype": (str,),
    "hidden_size": (int,),
    "num_hidden_layers": (int,),
    "num_attention_heads": (int,),
    "vocab_size": (int,),
    "hidden_act": (str,),
}
PRETRAINED: dict[str, Types] = {
    **REQUIRED,
    "logits_dtype": (str,),
    "norm_epsilon": (float,),
    "position_embedding_type": (str,),
    "max_position_embeddings": NULL_OR_INT,
    "num_key_value_heads": NULL_OR_INT,
    "intermediate_size": NULL_OR_INT,
    "mapping": (dict,),
    "quantization": (dict,),
    "use_parallel_embedding": (bool,),
    "embedding_sharding_dim": (int,),
    "head_size": NULL_OR_INT,
    "qk_layernorm": (bool,),
}
LLAMA: dict[str, Types] = {
    "mlp_bias": (bool,),
    "attn_bias": (bool,),
    "rotary_base": (float,),
    "rotary_scaling": (dict, Null),
    "residual_mlp": (bool,),
}
LLAMA_0_12: dict[str, Types] = {
    **LLAMA,
    "disable_weight_only_quant_plugin": (bool,),
    "remove_duplicated_kv_heads": (bool,),
}
FALCON: dict[str, Types] = {"bias": (bool,), "parallel_attention": (bool,), "new_decoder_architecture": (bool,)}
MAPPING: dict[str, Types] = {"world_size": (int,), "tp_size": (int,), "pp_size": (int,)}
QUANTIZATION: dict[str, Types] = {"quant_algo": NULL_OR_STR, "kv_cache_quant_algo": NULL_OR_STR}

ACTIVATIONS = {"relu", "gelu", "gelu_new", "silu"}  # of functional.ACT2FN; gelu_pytorch_tanh is not in 0.10's
POSITIONS = {"rope_gpt_neox", "alibi_with_scale"}  # of functional.PositionEmbeddingType


@dataclass(frozen=True)
class Fields:
    """``left_out`` are fields whose default means that the model has no mixture of experts and no similar feature."""

    llama: dict[str, Types]
    falcon: dict[str, Types]
    rotary_scaling_types: set[str]
    left_out: set[str]


SHARED: dict[str, Types] = {"share_embedding_table": (bool,)}
FALCON_0_17: dict[str, Types] = {**FALCON, "rotary_base": (float,)}
ROTARY_TYPES_0_12 = {"none", "linear", "dynamic", "longrope", "llama3"}
ROTARY_TYPES_0_17 = {*ROTARY_TYPES_0_12, "yarn", "mrope"}
MOE_0_10 = {"moe_num_experts", "moe_top_k", "moe_tp_mode", "moe_normalization_mode"}
LEFT_OUT_0_17 = {"moe", "runtime_defaults", "rotary_embedding_dim", "num_ln_in_parallel_attn"}
MULTIPLIERS = {"embedding_multiplier", "attention_multiplier", "residual_multiplier", "output_multiplier_scale"}

FIELDS = {
    "0.10": Fields(
        llama={**PRETRAINED, **SHARED, **LLAMA},
        falcon={**PRETRAINED, **SHARED, **FALCON},
        rotary_scaling_types={"linear", "dynamic"},
        left_out=MOE_0_10,
    ),
    "0.12": Fields(
        llama={**PRETRAINED, **SHARED, **LLAMA_0_12},
        falcon={**PRETRAINED, **SHARED, **FALCON},
        rotary_scaling_types=ROTARY_TYPES_0_12,
        left_out={"moe"},
    ),
    "0.17": Fields(
        llama={**PRETRAINED, **LLAMA_0_12},
        falcon={**PRETRAINED, **FALCON_0_17},
        rotary_scaling_types=ROTARY_TYPES_0_17,
        left_out=LEFT_OUT_0_17,
    ),
    "1.0": Fields(
        llama={**PRETRAINED, **LLAMA_0_12},
        falcon={**PRETRAINED, **FALCON_0_17},
        rotary_scaling_types=ROTARY_TYPES_0_17,
        left_out=LEFT_OUT_0_17 | MULTIPLIERS,
    ),
}
