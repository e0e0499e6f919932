"""SmolLM2-135M-Instruct as a Hugging Face folder, made from the .gguf file, which machines without the hub have."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from trtstream.build.checkpoint import open_checkpoint


def write_smollm2_folder(gguf: Path, folder: Path) -> None:
    """Write config.json, the weights in float16 and the tokenizer into the new ``folder``."""
    checkpoint = open_checkpoint(gguf)
    model = checkpoint.model
    assert model.rope is not None
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    parts = {
        "qkv": {
            f"self_attn.{name}_proj": n * model.head_dim
            for name, n in zip("qkv", (heads, kv_heads, kv_heads), strict=True)
        },
        "gate_up": {"mlp.gate_proj": model.intermediate_size, "mlp.up_proj": model.intermediate_size},
        "attention_output": {"self_attn.o_proj": model.hidden_size},
        "down": {"mlp.down_proj": model.hidden_size},
        "attention_norm": {"input_layernorm": model.hidden_size},
        "mlp_norm": {"post_attention_layernorm": model.hidden_size},
    }
    names = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    tensors: dict[str, torch.Tensor] = {}
    for name in checkpoint.tensor_names():
        tensor = checkpoint.tensor(name).half()
        if name in names:
            tensors[names[name]] = tensor
            continue
        _, layer, part, _ = name.split(".")
        for (theirs, _), rows in zip(parts[part].items(), tensor.split(list(parts[part].values())), strict=True):
            tensors[f"model.layers.{layer}.{theirs}.weight"] = rows.contiguous()
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope.theta,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": model.bos_token_id,
        "eos_token_id": list(model.eos_token_ids),
    }
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint.save_tokenizer(folder)
