"""Random edits of .gguf files: of their metadata and tensors, written again as a valid file, and of their bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import numpy as np

BYTES = (
    (2**62).to_bytes(8, "little"),
    b"\xff" * 8,
    b"\0" * 8,
    (2**31).to_bytes(4, "little"),
    b"\xff" * 4,
    b"\x09\0\0\0",
)
NUMBERS = (0, 1, 3, -1, 2**31, 2**63 - 1, 0.0, 1.0, 2.0, 1e31, float("nan"), float("inf"))
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    True,
    False,
    "",
    "yarn",
    "linear",
    "x\ny\x1b",
    "x" * 3000,
    [1],
    [1, 2],
    ["a", "b"],
    [0.5],
)
KEYS = (
    *("expert_count", "attention.sliding_window", "attention.key_length", "attention.value_length"),
    *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast"),
    *("rope.a\nb", "attention.head_count_kv"),
)
OTHER_KEYS = (
    *("split.count", "general.architecture", "tokenizer.chat_template", "tokenizer.a\nb", "tokenizer.ggml.pre"),
    *("tokenizer.ggml.model", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.merges"),
    *("tokenizer.ggml.add_space_prefix", "tokenizer.ggml.token_type", "tokenizer.ggml.suppress_tokens"),
)

YARN = {"{}.rope.scaling.type": "yarn", "{}.rope.scaling.factor": 4.0}
TOGETHER: tuple[dict[str, Any], ...] = (
    {"split.count": 2},
    {"{}.expert_count": 8},
    {"{}.attention.sliding_window": 16},
    {"{}.rope.scale_linear": 4.0},
    {"{}.rope.scaling.type": "linear", "{}.rope.scaling.factor": 4.0},
    YARN,
    {**YARN, "{}.rope.scaling.original_context_length": 1024},
    {**YARN, "{}.rope.scaling.original_context_length": 1024, "{}.rope.scaling.yarn_beta_fast": -1.0},
    {"tokenizer.ggml.tokens": "x"},
    {"tokenizer.ggml.eos_token_id": 10**6},
    {"tokenizer.ggml.pre": "x"},
    {"tokenizer.ggml.pre": None},
    {"tokenizer.ggml.add_space_prefix": False},
    {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False},
    {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None},
)
"""Metadata that say something together, ``{}`` for the architecture; None is a key that is gone."""

KINDS: dict[str, Callable[[Any], bool]] = {
    "BOOL": lambda value: isinstance(value, bool),
    "STRING": lambda value: isinstance(value, str),
    "FLOAT32": lambda value: isinstance(value, float),
    "INT64": lambda value: value < 0,
    "UINT64": lambda value: True,
}


def edit_gguf(random: Random, path: Path) -> str:
    """Edit the file, and say how."""
    return random.choice((_bytes, _metadata, _together, _together, _tensors, _tensors))(random, path)


def _bytes(random: Random, path: Path) -> str:
    data = bytearray(path.read_bytes())
    end = random.choice((100, 4000, len(data)))
    at, kind = random.randrange(min(end, len(data))), random.randrange(3)
    if kind == 0:
        data[at] ^= 1 << random.randrange(8)
    elif kind == 1:
        del data[at:]
    else:
        number = random.choice(BYTES)
        data[at : at + len(number)] = number
    path.write_bytes(data)
    return f"its bytes at {at}, {kind}"


def _metadata(random: Random, path: Path) -> str:
    values, tensors, architecture = _read(path)
    done = []
    for _ in range(random.choice((1, 1, 2))):
        known = sorted(values)
        key = random.choice((random.choice(known), f"{architecture}.{random.choice(KEYS)}", random.choice(OTHER_KEYS)))
        done.append(ascii(key))
        if random.random() < 0.25:
            values.pop(key, None)
        else:
            values[key] = random.choice(VALUES)
            done.append(ascii(values[key])[:60])
    _write(path, values, tensors, architecture)
    return f"metadata: {', '.join(done)}"


def _together(random: Random, path: Path) -> str:
    values, tensors, architecture = _read(path)
    changed = {key.format(architecture): value for key, value in random.choice(TOGETHER).items()}
    values = {key: value for key, value in (values | changed).items() if value is not None}
    _write(path, values, tensors, architecture)
    return f"metadata: {changed!a}"


def _tensors(random: Random, path: Path) -> str:
    values, tensors, architecture = _read(path)
    name = random.choice(sorted(tensors))
    kinds = ("gone", "name", "integers", "shape", "added", "divisors", "divisors", "bias", "BF16", "Q8_0", "big-endian")
    kind = random.choice(kinds)
    if kind in ("gone", "name"):
        array = tensors.pop(name)
    if kind == "name":
        tensors[random.choice(("a\nb\x1b[31m", "x" * 60, "output.weight", "token_embd.weight"))] = array
    elif kind == "integers":
        tensors[name] = np.ones(tensors[name].shape, random.choice((np.int8, np.int32, np.float64, np.float16)))
    elif kind == "shape":
        tensors[name] = tensors[name].reshape(random.choice((tensors[name].shape[::-1], (-1,), (1, 1, -1))))
    elif kind == "added":
        tensors["rope_freqs.weight" if random.random() < 0.5 else "y\nz"] = np.ones(3, np.float32)
    elif kind == "divisors":
        half = values[f"{architecture}.embedding_length"] // values[f"{architecture}.attention.head_count"] // 2
        scale = random.choice((1.0, 1.0, 1.0, 8.0, float("nan"), float("inf"), 0.0, -1.0))
        tensors["rope_freqs.weight"] = np.full(random.choice((half, half, 1)), scale, np.float32)
        if random.random() < 0.3:
            values[f"{architecture}.rope.scaling.type"] = "linear"
    elif kind == "bias":
        tensors[random.choice(("blk.0.attn_q.bias", "blk.0.ffn_down.bias", "blk.0.attn_norm_2.weight"))] = np.ones(
            3, np.float32
        )
    in_blocks = kind == "Q8_0" and tensors[name].shape[-1] % 32 == 0
    quantized = {name: kind} if kind == "BF16" or in_blocks else {}
    _write(path, values, tensors, architecture, quantized, big_endian=kind == "big-endian")
    return f"tensors: {name} {kind}"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    return values, tensors, values["general.architecture"]


def _write(
    path: Path,
    values: dict[str, Any],
    tensors: dict[str, np.ndarray],
    architecture: str,
    quantized: Mapping[str, str] = MappingProxyType({}),
    big_endian: bool = False,
) -> None:
    """Write a file; ``quantized`` has the kinds of the tensors that are not stored as they are."""
    from gguf import GGMLQuantizationType, GGUFEndian, GGUFValueType, GGUFWriter
    from gguf.quants import quantize

    path.unlink()
    writer = GGUFWriter(path, architecture, endianess=GGUFEndian.BIG if big_endian else GGUFEndian.LITTLE)
    for key, value in values.items():
        if key == "general.architecture" and value == architecture:
            continue
        writer.kv_data[0].pop(key, None)
        if isinstance(value, list):
            writer.add_array(key, value)
            continue
        kind = next(kind for kind, fits in KINDS.items() if fits(value))
        writer.add_key_value(key, value, GGUFValueType[kind])
    for name, tensor in tensors.items():
        if name in quantized:
            stored = GGMLQuantizationType[quantized[name]]
            writer.add_tensor(name, quantize(tensor, stored), raw_dtype=stored)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
