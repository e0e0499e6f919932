"""Tiny .gguf files out of tiny Hugging Face checkpoints, laid out as llama.cpp's converter lays them out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.numpy import load_file

LLAMA_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FALCON_NAMES = {
    "transformer.word_embeddings": "token_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "transformer.h": "blk",
    "input_layernorm": "attn_norm",
    "ln_mlp": "attn_norm",
    "ln_attn": "attn_norm_2",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}

GPT_NEOX_NAMES = {
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
    "gpt_neox.layers": "blk",
    "input_layernorm": "attn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
MPT_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.norm_f": "output_norm",
    "transformer.blocks": "blk",
    "norm_1": "attn_norm",
    "attn.Wqkv": "attn_qkv",
    "attn.out_proj": "attn_output",
    "norm_2": "ffn_norm",
    "ffn.up_proj": "ffn_up",
    "ffn.down_proj": "ffn_down",
}
NAMES = {"falcon": FALCON_NAMES, "gpt_neox": GPT_NEOX_NAMES, "mpt": MPT_NAMES}
ARCHITECTURES = {"gpt_neox": "gptneox"}  # where GGUF has a name of its own


def write_gguf(
    path: Path,
    folder: Path,
    quantization: str = "F32",
    *,
    metadata: Callable[[GGUFWriter], None] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write the checkpoint in ``folder`` as ``path``: matrices in ``quantization``, vectors in float32.

    ``metadata`` may add keys (a tokenizer, RoPE scaling), ``tensors`` more tensors.
    """
    config = json.loads((folder / "config.json").read_text())
    model_type = config["model_type"]
    writer = GGUFWriter(path, ARCHITECTURES.get(model_type, model_type))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if model_type == "mpt":
        _mpt(writer, config)
    else:
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_head_count(config["num_attention_heads"])
        {"falcon": _falcon, "gpt_neox": _gpt_neox}.get(model_type, _llama)(writer, config)
    if model_type == "phi3":
        _phi3(writer, config)
    if metadata:
        metadata(writer)
    for name, values in load_file(folder / "model.safetensors").items():
        kind = GGMLQuantizationType[quantization if values.ndim == 2 else "F32"]
        new_name, values = _convert(name, values, config)
        writer.add_tensor(new_name, quantize(values, kind), raw_dtype=kind)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _llama(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _phi3(writer: GGUFWriter, config: dict[str, Any]) -> None:
    rope = config["rope_parameters"]
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
    writer.add_sliding_window(config["sliding_window"] or 0)
    writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    writer.add_rope_scaling_attn_factors(rope.get("attention_factor", 1.25))
    for kind in ("short", "long"):
        writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))


def _falcon(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_feed_forward_length(config["ffn_hidden_size"])
    writer.add_head_count_kv(config["num_kv_heads"] if config["new_decoder_architecture"] else 1)
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _gpt_neox(writer: GGUFWriter, config: dict[str, Any]) -> None:
    rope = config["rope_parameters"]
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * head_dim))
    writer.add_parallel_residual(config["use_parallel_residual"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])


def _mpt(writer: GGUFWriter, config: dict[str, Any]) -> None:
    attention = config["attn_config"]
    writer.add_block_count(config["n_layers"])
    writer.add_context_length(config["max_seq_len"])
    writer.add_embedding_length(config["d_model"])
    writer.add_feed_forward_length(config["expansion_ratio"] * config["d_model"])
    writer.add_head_count(config["n_heads"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_max_alibi_bias(attention["alibi_bias_max"])
    if attention["clip_qkv"] is not None:
        writer.add_clamp_kqv(attention["clip_qkv"])


def _convert(name: str, values: np.ndarray, config: dict[str, Any]) -> tuple[str, np.ndarray]:
    """A tensor's name and values as the converter writes them."""
    names = NAMES.get(config["model_type"], LLAMA_NAMES)
    heads = config.get("num_attention_heads")
    if "q_proj" in name and config["model_type"] == "llama":
        values = _interleave(values, heads)
    elif "k_proj" in name and config["model_type"] == "llama":
        values = _interleave(values, config["num_key_value_heads"])
    elif "query_key_value" in name and config["model_type"] == "gpt_neox":
        by_head = values.reshape(heads, 3, -1, *values.shape[1:])
        values = np.concatenate([by_head[:, i].reshape(-1, *values.shape[1:]) for i in range(3)])
    elif "query_key_value" in name:
        kv_heads = config["num_kv_heads"] if config["new_decoder_architecture"] else 1
        groups = values.reshape(kv_heads, heads // kv_heads + 2, -1, values.shape[1])
        parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
        values = np.concatenate([part.reshape(-1, values.shape[1]) for part in parts])
    for theirs, ours in names.items():
        name = name.replace(theirs, ours, 1)
    return name, values


def _interleave(values: np.ndarray, heads: int) -> np.ndarray:
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
