"""Writes a .gguf file with random weights: TinyLlama's sizes, 1.1 billion parameters, in the formats of another file.

It is for measuring speed where no such model can be downloaded, and speaks nonsense with the other file's tokenizer:

    python -m benchmarks.compare.random_gguf SMOLLM2.gguf llama-1b.gguf
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.compare.gguf_formats import finish, new_writer
from benchmarks.models import TINYLLAMA
from trtstream.settings import ModelConfig

if TYPE_CHECKING:
    from gguf import ReaderTensor

STD = 0.02


def write_random_gguf(source: Path, output: Path, model: ModelConfig) -> None:
    """Write ``output`` with the metadata, vocabulary and formats of the Llama ``source`` and the sizes of ``model``."""
    from gguf import GGUFReader
    from gguf.quants import quantize

    reader = GGUFReader(source)
    sizes = {
        "block_count": model.num_hidden_layers,
        "embedding_length": model.hidden_size,
        "feed_forward_length": model.intermediate_size,
        "attention.head_count": model.num_attention_heads,
        "attention.head_count_kv": model.num_key_value_heads,
        "rope.dimension_count": model.head_dim,
    }
    writer = new_writer(reader, output, {f"llama.{name}": size for name, size in sizes.items()})
    generator = np.random.default_rng(0)

    def add(name: str, like: ReaderTensor) -> None:
        shape = _shape(like.name, int(like.shape[-1]), model)
        values = generator.standard_normal(shape, dtype=np.float32) * STD if len(shape) > 1 else np.ones(shape)
        stored = quantize(values.astype(np.float32), like.tensor_type)
        writer.add_tensor(name, stored, raw_dtype=like.tensor_type)

    for tensor in reader.tensors:
        if not tensor.name.startswith("blk."):
            add(tensor.name, tensor)
    for layer in range(model.num_hidden_layers):
        for tensor in reader.tensors:
            if tensor.name.startswith("blk.0."):
                add(tensor.name.replace("blk.0.", f"blk.{layer}."), tensor)
    finish(writer)


def _shape(name: str, vocab_size: int, model: ModelConfig) -> tuple[int, ...]:
    """The shape, [rows, columns], that a tensor of the source has in a model of other sizes."""
    hidden, intermediate = model.hidden_size, model.intermediate_size
    heads = model.num_attention_heads * model.head_dim
    kv_heads = model.num_key_value_heads * model.head_dim
    shapes = {
        "token_embd": (vocab_size, hidden),
        "output": (vocab_size, hidden),
        "attn_q": (heads, hidden),
        "attn_k": (kv_heads, hidden),
        "attn_v": (kv_heads, hidden),
        "attn_output": (hidden, heads),
        "ffn_gate": (intermediate, hidden),
        "ffn_up": (intermediate, hidden),
        "ffn_down": (hidden, intermediate),
    }
    return shapes.get(name.removesuffix(".weight").split(".")[-1], (hidden,))  # all others are norms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    write_random_gguf(arguments.source, arguments.output, TINYLLAMA)


if __name__ == "__main__":
    main()
