"""A .gguf file, read with the ``gguf`` package: metadata become a Hugging Face config, tensors are dequantized."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trtstream.build import gguf_tokenizer
from trtstream.build.families import find_gguf_family
from trtstream.build.families.family import Layout
from trtstream.build.families.raw_config import RawConfig
from trtstream.build.gguf_rope import ROPE_TENSORS, rope_parameters
from trtstream.errors import TrtstreamError, named_errors
from trtstream.extras import require_extra
from trtstream.plugins.block_weight import BLOCK_FORMATS
from trtstream.typed_json import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class GgufFile:
    layout: Layout = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = {"gguf": path}
        self._metadata, self._tensors = _read_header(path)
        if self._metadata.get("split.count", 1) not in (0, 1):
            raise TrtstreamError(f"{path} is one of {shown(self._metadata['split.count'])} parts; join them first")
        self.shapes = {name: tuple(reversed(tensor.shape.tolist())) for name, tensor in self._tensors.items()}
        for tensor in self._tensors.values():
            _check_type(path, tensor)
        architecture = str(self._metadata.get("general.architecture"))
        self.family = find_gguf_family(str(path), architecture)
        prefix = f"{architecture}."
        model = {key.removeprefix(prefix): value for key, value in self._metadata.items() if key.startswith(prefix)}
        metadata = RawConfig(f"{path}, {architecture} metadata", model)
        assert self.family.gguf_config is not None, "a family that has a GGUF architecture"
        of_family = self.family.gguf_config(metadata, self.shapes)
        self.config = RawConfig(str(path), self._common_config(metadata) | of_family)
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
        # Values that need no dequantizing are a view of the file's read-only memory: copied.
        return torch.from_numpy(values if values.flags.writeable else np.array(values))

    def block_format(self, name: str) -> str | None:
        kind: str = self._tensors[name].tensor_type.name
        return kind if kind in BLOCK_FORMATS else None

    def read_blocks(self, name: str) -> torch.Tensor:
        rows, _ = self.shapes[name]
        return torch.from_numpy(np.array(self._tensors[name].data).view(np.uint8).reshape(rows, -1))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        metadata = {key: value for key, value in self._metadata.items() if key.startswith("tokenizer.")}
        return gguf_tokenizer.load(self.path, metadata)

    def _common_config(self, metadata: RawConfig) -> dict[str, Any]:
        """The part of a config for which GGUF has the same names in every architecture."""
        if "token_embd.weight" not in self.shapes:
            raise TrtstreamError(f"{self.path} lacks token_embd.weight; convert or fetch it again")
        heads, hidden_size = metadata.integer("attention.head_count"), metadata.integer("embedding_length")
        head_dim = metadata.integer("attention.key_length", default=hidden_size // heads)
        if metadata.integer("attention.value_length", default=head_dim) != head_dim:
            raise metadata.error(
                f"attention.value_length is {shown(metadata.get('attention.value_length'))}; only {head_dim}, the size "
                "of a head, is supported"
            )
        ends = [self._metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
        tensors = {name: self.read(name) for name in ROPE_TENSORS if name in self.shapes}
        return {
            "vocab_size": self.shapes["token_embd.weight"][0],
            "hidden_size": hidden_size,
            "intermediate_size": metadata.integer("feed_forward_length"),
            "num_hidden_layers": metadata.integer("block_count"),
            "num_attention_heads": heads,
            "head_dim": head_dim,
            "max_position_embeddings": metadata.integer("context_length"),
            "sliding_window": metadata.get("attention.sliding_window"),
            "rope_parameters": rope_parameters(metadata, head_dim, tensors),
            "tie_word_embeddings": "output.weight" not in self.shapes,
            "bos_token_id": self._metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": [token for token in ends if token is not None],
        }


def _check_type(path: Path, tensor: Any) -> None:
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[tensor.tensor_type][1]), np.uint8), tensor.tensor_type)
    except NotImplementedError:
        raise TrtstreamError(
            f"{path}: {shown(tensor.name)} is stored as {tensor.tensor_type.name}, which cannot be read; "
            "convert the model to F16, Q8_0 or Q4_K"
        ) from None


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata (of the tokenizer's long lists only the length) and the reader's tensors, both by name.

    A value that is the same for every layer may be stored as a list of one per layer; such a list becomes the value.
    """
    require_extra("gguf", "gguf", f"reading {path}")
    from gguf import GGUFReader

    class CheckedReader(GGUFReader):
        """GGUFReader itself slices past the end of the file silently, and loops forever when a count is wrong."""

        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._data = mapped.view(np.ndarray)  # slicing a memmap, once for each token, takes twice as long

        def _get(self, offset: int, dtype: Any, count: int = 1, *args: Any, **kwargs: Any) -> Any:
            values = super()._get(offset, dtype, count, *args, **kwargs)
            if len(values) != int(count):
                raise EOFError(f"it ends before byte {int(offset) + np.dtype(dtype).itemsize * int(count)}")
            return values

    with named_errors(f"{path} is damaged or not a GGUF file", "fetch it again"):
        reader = CheckedReader(path)
        metadata = {}
        for name, field in reader.fields.items():
            if name.startswith("tokenizer.") and len(field.data) > 1:
                metadata[name] = len(field.data)
                continue
            value = field.contents()
            metadata[name] = value[0] if isinstance(value, list) and len(set(value)) == 1 else value
    if reader.byte_order != "I":
        raise TrtstreamError(f"{path} is in the other byte order than this machine; convert it")
    return metadata, {tensor.name: tensor for tensor in reader.tensors}
