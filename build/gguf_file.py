"""A .gguf file, read with the ``gguf`` package: metadata become a Hugging Face config, tensors are dequantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from trtstream.build import tokenizer
from trtstream.build.families.raw_config import RawConfig
from trtstream.errors import TrtstreamError
from trtstream.plugins.positions import inverse_frequencies
from trtstream.settings import RopeConfig

ROPE_FREQS = "rope_freqs.weight"
ROPE_KEYS = {
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


class GgufFile:
    layout = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metadata, self._tensors = _read_header(path)
        if self._metadata.get("split.count", 1) not in (0, 1):
            raise TrtstreamError(f"{path} is one of {self._metadata['split.count']} parts; join them first")
        self.shapes = {name: tuple(reversed(tensor.shape.tolist())) for name, tensor in self._tensors.items()}
        for tensor in self._tensors.values():
            self._check_type(tensor)
        architecture = str(self._metadata.get("general.architecture"))
        configs = {"llama": self._llama_config, "falcon": self._falcon_config}
        if architecture not in configs:
            raise TrtstreamError(
                f"{path}: the architecture {architecture!r} is not supported; supported are {', '.join(configs)}"
            )
        prefix = f"{architecture}."
        own = {key.removeprefix(prefix): value for key, value in self._metadata.items() if key.startswith(prefix)}
        self.config = RawConfig(str(path), configs[architecture](RawConfig(f"{path}, {architecture} metadata", own)))
        self.config.refuse_unsupported()

    def read(self, name: str) -> torch.Tensor:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        stored = self._tensors[name]
        if stored.tensor_type == GGMLQuantizationType.BF16:
            return torch.from_numpy(np.array(stored.data).view(np.int16)).view(torch.bfloat16)
        if stored.tensor_type == GGMLQuantizationType.F16:
            return torch.from_numpy(np.array(stored.data))
        values = dequantize(stored.data, stored.tensor_type)
        # What needs no dequantizing is still the file's own read-only memory.
        return torch.from_numpy(values if values.flags.writeable else np.array(values))

    def save_tokenizer(self, folder: Path) -> bool:
        if self._metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
            return False
        tokenizer.save_from_gguf(self.path, self._metadata.get("tokenizer.ggml.pre", "default"), folder)
        return True

    def _llama_config(self, own: RawConfig) -> dict[str, Any]:
        if own.get("expert_count"):
            raise own.error("a mixture of experts is not supported")
        common = self._common_config(own)
        return {
            **common,
            "architectures": ["LlamaForCausalLM"],
            "num_key_value_heads": own.integer("attention.head_count_kv", default=common["num_attention_heads"]),
            "rms_norm_eps": own.number("attention.layer_norm_rms_epsilon"),
            "attention_bias": "blk.0.attn_q.bias" in self.shapes,
            "mlp_bias": "blk.0.ffn_down.bias" in self.shapes,
        }

    def _falcon_config(self, own: RawConfig) -> dict[str, Any]:
        """GGUF's Falcons are all parallel, and a multi-query one is a grouped one with a single key-value head."""
        common = self._common_config(own)
        return {
            **common,
            "architectures": ["FalconForCausalLM"],
            "new_decoder_architecture": True,
            "ffn_hidden_size": common["intermediate_size"],
            "num_kv_heads": own.integer("attention.head_count_kv", default=1),
            "num_ln_in_parallel_attn": 2 if "blk.0.attn_norm_2.weight" in self.shapes else 1,
            "layer_norm_epsilon": own.number("attention.layer_norm_epsilon"),
        }

    def _common_config(self, own: RawConfig) -> dict[str, Any]:
        if "token_embd.weight" not in self.shapes:
            raise TrtstreamError(f"{self.path} lacks token_embd.weight; convert or fetch it again")
        heads, hidden_size = own.integer("attention.head_count"), own.integer("embedding_length")
        head_dim = own.integer("attention.key_length", default=hidden_size // heads)
        for name in ("attention.value_length", "rope.dimension_count"):
            if own.integer(name, default=head_dim) != head_dim:
                raise own.error(f"{name} is {own.get(name)} and heads have {head_dim}, which is not supported")
        ends = [self._metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
        return {
            "vocab_size": self.shapes["token_embd.weight"][0],
            "hidden_size": hidden_size,
            "intermediate_size": own.integer("feed_forward_length"),
            "num_hidden_layers": own.integer("block_count"),
            "num_attention_heads": heads,
            "head_dim": head_dim,
            "max_position_embeddings": own.integer("context_length"),
            "sliding_window": own.get("attention.sliding_window"),
            "rope_parameters": self._rope_parameters(own, head_dim),
            "tie_word_embeddings": "output.weight" not in self.shapes,
            "bos_token_id": self._metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": [token for token in ends if token is not None],
        }

    def _rope_parameters(self, own: RawConfig, head_dim: int) -> dict[str, Any]:
        unknown = sorted(key for key in own.values if key.startswith("rope.") and key not in ROPE_KEYS)
        if unknown:
            raise own.error(f"{unknown[0]} is not supported; use the Hugging Face checkpoint")
        kind = own.get("rope.scaling.type", default="none")
        rope = {"rope_type": kind, "rope_theta": own.number("rope.freq_base", default=10000.0)}
        if ROPE_FREQS in self.shapes:
            if kind != "none":
                raise own.error(f"{ROPE_FREQS} beside RoPE scaling {kind!r} is not supported")
            return rope | self._llama3_scaling(rope["rope_theta"], head_dim)
        if kind == "none":
            # The oldest files have the factor alone.
            factor = own.number("rope.scale_linear", default=1.0)
            return rope | ({"rope_type": "default"} if factor == 1.0 else {"rope_type": "linear", "factor": factor})
        rope["factor"] = own.number("rope.scaling.factor")
        if kind == "yarn":
            rope["original_max_position_embeddings"] = own.integer("rope.scaling.original_context_length")
            rope["beta_fast"] = own.number("rope.scaling.yarn_beta_fast", default=32.0)
            rope["beta_slow"] = own.number("rope.scaling.yarn_beta_slow", default=1.0)
        return rope

    def _llama3_scaling(self, theta: float, head_dim: int) -> dict[str, Any]:
        """Of llama3 scaling GGUF keeps only what each frequency is divided by. Every Llama 3 release has the same
        bounds, so that the largest divisor tells the rest; anything else is refused."""
        divisors = self.read(ROPE_FREQS).double()
        factor, low, high, original = round(float(divisors.max()), 3), 1.0, 4.0, 8192
        scaled = RopeConfig("llama3", theta, factor, original, low_freq_factor=low, high_freq_factor=high)
        expected = inverse_frequencies(RopeConfig(theta=theta), head_dim)[0] / inverse_frequencies(scaled, head_dim)[0]
        if divisors.shape != (head_dim // 2,) or not torch.allclose(divisors, expected, rtol=1e-3):
            raise TrtstreamError(
                f"{self.path}: {ROPE_FREQS} is not the RoPE scaling of a Llama 3; use the Hugging Face checkpoint"
            )
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }

    def _check_type(self, tensor: Any) -> None:
        from gguf import GGML_QUANT_SIZES
        from gguf.quants import dequantize

        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[tensor.tensor_type][1]), np.uint8), tensor.tensor_type)
        except NotImplementedError:
            raise TrtstreamError(
                f"{self.path}: {tensor.name} is stored as {tensor.tensor_type.name}, which cannot be read; "
                "convert the model to F16, Q8_0 or Q4_K"
            ) from None


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata (the tokenizer's long lists left out) and the reader's tensors, both by name.

    A value that is the same for every layer may be stored as a list of one per layer; such a list becomes the value.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise TrtstreamError(f"reading {path} needs the gguf package: pip install 'trtstream[gguf]'") from error

    class CheckedReader(GGUFReader):
        """Plain GGUFReader slices past the end of the file without a word, and loops for ever over a lying count."""

        def _get(self, offset: int, dtype: Any, count: int = 1, *args: Any, **kwargs: Any) -> Any:
            values = super()._get(offset, dtype, count, *args, **kwargs)
            if len(values) != int(count):
                raise EOFError(f"it ends before byte {int(offset) + np.dtype(dtype).itemsize * int(count)}")
            return values

    try:
        reader = CheckedReader(path)
        metadata = {}
        for name, field in reader.fields.items():
            if not (name.startswith("tokenizer.") and len(field.data) > 1):
                value = field.contents()
                metadata[name] = value[0] if isinstance(value, list) and len(set(value)) == 1 else value
    except Exception as error:  # whatever a hostile file provokes in the reader
        raise TrtstreamError(
            f"{path} is damaged or no GGUF file ({str(error) or type(error).__name__}); fetch it again"
        ) from error
    if reader.byte_order != "I":
        raise TrtstreamError(f"{path} is in the other byte order than this machine; convert it")
    return metadata, {tensor.name: tensor for tensor in reader.tensors}
