"""Edited and damaged checkpoints: each is refused in one line when it is opened, or becomes an engine's files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from safetensors import safe_open

from benchmarks.fuzz.children import run_cases
from benchmarks.fuzz.gguf_edits import edit_gguf
from benchmarks.fuzz.json_edits import VALUES, edit_text, edit_values
from benchmarks.fuzz.report import Report
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.cpu import cpu_weights
from trtstream.build.huggingface_folder import INDEX, SINGLE
from trtstream.build.memory import estimate_memory
from trtstream.engine_dir import KEYS_OF_ENGINES
from trtstream.errors import TrtstreamError
from trtstream.runtime.tokenizer import load_tokenizer
from trtstream.settings import BuildConfig, check_against_model, default_window

ROPE: tuple[Any, ...] = (
    *({"rope_type": kind} for kind in ("default", "linear", "dynamic", "llama3", "yarn", "longrope", ["yarn"])),
    {"rope_type": "linear", "factor": 2},
    {"type": "dynamic", "factor": 1e31},
    {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1},
    {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4},
    {"rope_type": "yarn", "factor": 4, "rope_theta": 1},
    {"rope_type": "yarn", "factor": 4, "attention_factor": 1, "mscale": 1, "beta_fast": 0, "truncate": None},
    {"rope_type": "yarn", "factor": 4, "attention_factor": -1, "original_max_position_embeddings": 0},
    {"partial_rotary_factor": 0.5},
    {"rope_theta": 0},
    {"rope_theta": 1e-300},
)
FULL, SLIDING = "full_attention", "sliding_attention"
CONFIG: dict[str, tuple[Any, ...]] = {
    "architectures": (None, [], ["FalconForCausalLM"], ["LlamaForCausalLM"], ["Mistral\n\x1b[31m"], [[]], "Llama"),
    "model_type": ("llama", "falcon", "RefinedWeb", "RefinedWebModel", "gpt2", 5),
    "quantization_config": ({}, {"quant_method": "gptq"}, {"quant_method": ["x" * 500]}, "int4"),
    "sliding_window": (0, 16, 128, 128, "wide"),
    "use_sliding_window": (False, True, True, True),
    "max_window_layers": (None, 0, 0, 1, 28, "all"),
    "layer_types": (None, None, [SLIDING], [FULL], [FULL], [SLIDING, FULL], ["linear_attention"], [[]], 5),
    "rope_parameters": ROPE,
    "rope_scaling": (*ROPE, {}, "linear"),
    "rope_theta": (0, 1, 1e31, "10000"),
    "partial_rotary_factor": (1, 0.5),
    "original_max_position_embeddings": (0, 16, 2**31),
    "hidden_act": ("gelu", "relu", "mish", ["silu"], "x\ny"),
    "activation": ("gelu", "mish"),
    "rms_norm_eps": (0, 1, 2, 1e-40, True),
    "layer_norm_epsilon": (0, 1.5),
    "num_attention_heads": (1, 3, 8, 2**31 - 1),
    "num_key_value_heads": (1, 3, 4, 8),
    "num_kv_heads": (1, 3, 3, 4),
    "head_dim": (None, None, 1, 15, 16, 2**31 - 1),
    "hidden_size": (1, 2, 63, 2**31 - 1),
    "ffn_hidden_size": (None, 2**31),
    "num_hidden_layers": (1, 10**9, 10**9),
    "tie_word_embeddings": (True, False, "yes", None),
    **dict.fromkeys(("attention_bias", "mlp_bias", "bias", "alibi", "multi_query"), (True, False, None, 1)),
    **dict.fromkeys(("parallel_attn", "new_decoder_architecture"), (True, False, None, "no")),
    "num_ln_in_parallel_attn": (1, 2, 3, 3),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), (None, -1, [], [1, 5, 10**9], "</s>", [True], [[1]])),
    "max_position_embeddings": (1, 2, 4, 2**31 - 1),
}
"""Values that each say something of a model, by their key in config.json."""

GROUPS = (
    ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    ("num_attention_heads", "hidden_size", "head_dim"),
    ("num_attention_heads", "head_dim"),
    ("num_key_value_heads", "num_kv_heads"),
    ("num_ln_in_parallel_attn", "num_hidden_layers"),
    ("alibi", "new_decoder_architecture", "parallel_attn", "multi_query"),
    ("hidden_act", "activation"),
    ("rope_parameters",),
    ("rope_scaling",),
)
"""Keys that say something together, or have many values."""

NEW_FALCON = {"new_decoder_architecture": True}
ALIBI = {"alibi": True, "parallel_attn": False}

TEMPLATES: tuple[Any, ...] = (
    *({"default": "{{ 1 }}"}, {"rag": "{{ 1 }}"}, [{"name": "default", "template": 5}], [{"name": "x\ny"}], 5, "{% x"),
    "{% for i in range(9999) %}{{ i }}{% endfor %}{{ raise_exception('no\nsuch') }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ messages[1].content }}</s>",
    "\ud800",
)


def fuzz_checkpoints(sources: Sequence[Path], count: int, seed: int) -> Report:
    """Edit copies of ``sources``, folders and .gguf files, ``count`` of them, and take each as far as an engine."""
    return run_cases(run_case, (tuple(sources), seed), count)


def run_case(number: int, sources: Sequence[Path], seed: int) -> tuple[str, str | None]:
    """Edit one copy; see `benchmarks.fuzz.children.Case`."""
    random = Random(f"{seed}/{number}")
    source = random.choice(sources)
    with tempfile.TemporaryDirectory() as work:
        copy = Path(work, source.name)
        what = f"edit {number} of seed {seed}, {source.name}, "
        try:
            if source.is_dir():
                shutil.copytree(source, copy)
                edit = random.choice(EDITS)
            else:
                shutil.copyfile(source, copy)
                edit = random.choice((*[edit_gguf] * 20, _become))
            what += edit(random, copy)
            take(copy, Path(work))
        except TrtstreamError as error:
            if not str(error).isprintable() or len(str(error)) > 2000:
                return "refused", f"{what}: not one line: {str(error)[:2000]!r}"
            return "refused", None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic of Rust's is not an Exception
            return "another exception", f"{what}: {traceback.format_exc(limit=-6)}"
    return "taken", None


def take(checkpoint: Path, work: Path) -> None:
    """All that a build does but compiling, and what loading its engine does with the tokenizer."""
    opened = open_checkpoint(checkpoint)
    window = default_window(opened.model)
    build = BuildConfig(max_attention_window=window, sink_token_length=0, max_sink_token_length=0)
    build.validate("cpu")
    check_against_model(build, opened.model, force=False)
    estimate_memory(opened, build, "cpu")
    has_tokenizer = opened.save_tokenizer(work / "tokenizer")
    cpu_weights(opened, build).write(work / "weights", lambda done, total: None)
    opened.fingerprint()
    if has_tokenizer:
        try:
            load_tokenizer(work / "tokenizer")
        except TrtstreamError as error:
            raise RuntimeError("its engine's tokenizer is refused") from error


def _config(random: Random, folder: Path) -> str:
    values = json.loads((folder / "config.json").read_text())
    keys = random.sample(sorted(CONFIG), random.choice((1, 1, 2, 3)))
    for key in keys:
        values[key] = random.choice(CONFIG[key] if random.random() < 0.8 else VALUES)
    (folder / "config.json").write_text(json.dumps(values))
    return f"config.json: {', '.join(keys)}"


def _group(random: Random, folder: Path) -> str:
    values = json.loads((folder / "config.json").read_text())
    changed = _of_group(random)
    (folder / "config.json").write_text(json.dumps(values | changed))
    return f"config.json: {ascii(changed)[:300]}"


def _of_group(random: Random) -> dict[str, Any]:
    return {key: random.choice(CONFIG[key]) for key in random.choice(GROUPS)}


def _falcon(random: Random, folder: Path) -> str:
    """Another kind of model than that of the weights, which has other branches."""
    kinds = ("falcon", "RefinedWeb", "RefinedWebModel")
    values = {"model_type": random.choice(kinds), "vocab_size": 128, "hidden_size": 64, "num_attention_heads": 4}
    values |= {"num_hidden_layers": random.choice((1, 2)), "multi_query": random.choice((True, False))}
    values |= random.choice((NEW_FALCON, NEW_FALCON, ALIBI, {})) | _of_group(random) | _of_group(random)
    for key in random.sample(sorted(CONFIG), random.choice((0, 0, 0, 2))):
        values[key] = random.choice(CONFIG[key])
    (folder / "config.json").write_text(json.dumps(values))
    return f"config.json: {ascii(values)[:300]}"


def _values(random: Random, folder: Path) -> str:
    path = random.choice(sorted(folder.glob("*.json")))
    values = json.loads(path.read_text())
    what = edit_values(random, values)
    path.write_text(json.dumps(values))
    return f"{path.name}: {what}"


def _text(random: Random, folder: Path) -> str:
    path = random.choice(sorted(folder.glob("*.json")))
    path.write_bytes(edit_text(random, path.read_bytes()))
    return f"{path.name}: its text"


def _generation(random: Random, folder: Path) -> str:
    values = {key: random.choice(CONFIG[key]) for key in ("bos_token_id", "eos_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(random.choice((values, values, [], {}, "x", None))))
    return f"generation_config.json: {values}"


def _template(random: Random, folder: Path) -> str:
    """In tokenizer_config.json, as older checkpoints have it, or in a file of its own."""
    template = random.choice(TEMPLATES)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text()) if path.is_file() else {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if isinstance(template, str) and random.random() < 0.5:
        (folder / "chat_template.jinja").write_bytes(template.encode(errors="surrogatepass"))
    else:
        path.write_text(json.dumps({**values, "chat_template": template}))
    return f"the chat template {ascii(template)[:80]}"


def _tokenizer_files(random: Random, folder: Path) -> str:
    """Some of its files are gone, or are another kind's."""
    for path in sorted(folder.glob("tokenizer*")):
        if random.random() < 0.5:
            path.unlink()
    name = random.choice(("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"))
    (folder / name).write_bytes(random.choice((b"", b"{}", b"\x07{ torn", b'{"x": 1e400}')))
    return f"tokenizer files, {name}"


def _index(random: Random, folder: Path) -> str:
    names = [path.name for path in sorted(folder.glob("*.safetensors"))]
    others = ("", ".", "..", "../x", "a\nb", "x" * 10_000, "\ud800", "\0", "/dev/zero", "gone.safetensors", 5, None)
    tensors = ("model.norm.weight", "lm_head.weight", "transformer.ln_f.weight", "a\nb", "")
    weight_map = {name: random.choice((*names, *names, *others)) for name in tensors}
    values: Any = random.choice(({"weight_map": weight_map}, {"weight_map": weight_map}, {"weight_map": []}, [], {}))
    (folder / INDEX).write_text(json.dumps(values))
    if random.random() < 0.3:
        (folder / random.choice(("a.safetensors", SINGLE, "m.bin"))).write_bytes((folder / names[0]).read_bytes())
    if random.random() < 0.3:
        (folder / random.choice(names)).unlink()
    return f"the index: {ascii(values)[:200]}"


def _layout(random: Random, folder: Path) -> str:
    """Shards that are not safetensors, are gone, or have the same tensors."""
    first = min(folder.glob("*.safetensors"))
    kind = random.choice(
        ("no weights", ".bin files", "a leftover index", "tensors twice", "tensors twice, all assigned")
    )
    if kind in ("no weights", ".bin files"):
        for path in sorted(folder.glob("*.safetensors")):
            path.rename(path.with_suffix(".bin" if kind == ".bin files" else ".txt"))
        (folder / INDEX).unlink(missing_ok=True)
        return kind
    again = folder / "again.safetensors"
    shutil.copyfile(first, again)
    if kind == "a leftover index":
        first.replace(folder / SINGLE)
        weight_map = {"x": random.choice((again.name, again.name, "gone.safetensors")), "y": "gone.safetensors"}
    else:
        with safe_open(first, framework="np") as file:
            assigned = file.keys() if kind.endswith("assigned") else ["x"]
        weight_map = {**dict.fromkeys(assigned, first.name), "y": again.name}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return kind


def _header(random: Random, folder: Path) -> str:
    """The header of a safetensors file: eight bytes of length, then JSON."""
    path = random.choice(sorted(folder.glob("*.safetensors")))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    values = json.loads(header)
    name = random.choice(sorted(values))
    kind = random.randrange(5)
    if kind == 0 and "dtype" in values[name]:
        values[name]["dtype"] = random.choice(("I32", "I32", "U32", "F8_E4M3", "BF16", "F64", "x\ny"))
    elif kind == 1:
        values[random.choice(("a\nb\x1b[31m", "x" * 3000, "", "lm_head.weight", "rotary_emb.inv_freq"))] = values.pop(
            name
        )
    elif kind == 2 and "shape" in values[name]:
        values[name]["shape"] = random.choice(([], [1] * 200, values[name]["shape"][::-1], [2**62, 4], [0]))
    else:
        edit_values(random, values)
    header = json.dumps(values).encode() if kind < 4 else edit_text(random, header)
    length = random.choice((*[len(header)] * 12, len(header) + 1, 0, 2**63, 2**40))
    path.write_bytes(length.to_bytes(8, "little") + header + body[: random.choice((*[None] * 10, 7, 0))])
    return f"{path.name}: its header, {ascii(name)[:40]}"


def _bytes(random: Random, folder: Path) -> str:
    """A flipped bit of any file, or its end cut off."""
    path = random.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    data = bytearray(path.read_bytes())
    if random.random() < 0.5:
        data[random.randrange(min(len(data), random.choice((200, 10**9))))] ^= 1 << random.randrange(8)
    else:
        del data[random.randrange(len(data)) :]
    path.write_bytes(data)
    return f"{path.name}: its bytes"


def _special(random: Random, folder: Path) -> str:
    """A file becomes something else."""
    path = random.choice(sorted(folder.glob(random.choice(("*", "*.json")))))
    return f"{path.name}: {_become(random, path)}"


def _no_checkpoint(random: Random, folder: Path) -> str:
    """The path has become another thing, or the folder has an engine or a model repository in it."""
    kind = random.choice(("another thing", "engine", "repository"))
    if kind == "another thing":
        return _become(random, folder)
    if kind == "engine":
        (folder / "config.json").write_text(json.dumps(dict.fromkeys(KEYS_OF_ENGINES)))
    else:
        (folder / "model").mkdir()
        (folder / "model" / "config.pbtxt").touch()
    return kind


def _become(random: Random, path: Path) -> str:
    """Replace a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    kinds: dict[str, Callable[[], None]] = {
        "removed": lambda: None,
        "empty": path.touch,
        "folder": path.mkdir,
        "FIFO": lambda: os.mkfifo(path),
        "link to itself": lambda: path.symlink_to(path.name),
        "link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "a file whose reading fails": lambda: path.symlink_to("/proc/self/mem"),
    }
    kind = random.choice(sorted(kinds))
    kinds[kind]()
    return kind


EDITS: tuple[Callable[[Random, Path], str], ...] = (
    *(_config, _config, _config, *[_group] * 6, *[_falcon] * 4, _values, _values, _text, _generation),
    *(_template, _template, _tokenizer_files, _tokenizer_files, _index, _layout, _layout),
    *(_header, _header, _bytes, _special, _special, _special, _no_checkpoint),
)
