"""The contestants: this engine in every format, and the chosen peers."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtstream.settings import BuildConfig, check_against_model
from trtstream.targets import TARGETS

if TYPE_CHECKING:
    from trtstream.build.checkpoint import Checkpoint

TORCH = "benchmarks.compare.contestants:make"
STEPS = 16  # tokens that are decoded in a turn
LLAMA_CPP_FORMATS = ("Q8_0", "F16")  # in addition to the checkpoint's own
BATCHES = (4, 8)  # sessions that are decoded together, in addition to one
RECOMPUTED = 8  # recompute is slow, so it predicts after every 8th token only


@dataclass(frozen=True)
class Entry:
    """A contestant before it runs: ``maker`` ("module:function") makes it from ``settings`` in its own process."""

    name: str
    maker: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    every: int = 1  # tokens in a call of a decoding turn
    sessions: int = 1  # that read the same text and are decoded together
    why_not: str | None = None  # why it cannot run here


MEMORY = Entry("memory", TORCH, {"kind": "memory"}, every=STEPS)  # the lower bound of a step, measured once a turn


def our_entries(path: Path, checkpoint: Checkpoint, window: int, sinks: int, scratch: Path) -> list[Entry]:
    """This engine in floats, of which float32 is the first, which all are compared with; and with weights in blocks.

    Those are the checkpoint's own where it has some, else of 8 and 4 bits; the cache is in bfloat16 then. From a .gguf
    file also in Q8_0, with the same bits as llama.cpp has, converted in ``scratch``. In bfloat16 with several sessions.
    Raises TrtstreamError for an impossible window, or one that the checkpoint ``path`` was not trained for.
    """
    from trtstream.build.cpu import default_quantization

    kept = default_quantization(checkpoint, "cpu")
    in_blocks = ("int8", "int4") if kept == "none" else (kept,)
    formats = [(dtype, "none") for dtype in TARGETS["cpu"].dtypes] + [("bfloat16", each) for each in in_blocks]
    entries = []
    for dtype, quantization in formats:
        build = replace(_build(window, sinks), dtype=dtype, quantization=quantization)
        build.validate("cpu")
        check_against_model(build, checkpoint.model, force=False)
        name = f"trtstream {dtype if quantization == 'none' else quantization}"
        entries.append(Entry(name, TORCH, {"kind": "engine", "checkpoint": str(path), "build": build}))
    in_bfloat16 = replace(_build(window, sinks), dtype="bfloat16")
    if path.suffix.lower() == ".gguf":
        file, build = str(_in_format("Q8_0", path, scratch)), replace(in_bfloat16, quantization="kept")
        entries.append(Entry("trtstream Q8_0", TORCH, {"kind": "engine", "checkpoint": file, "build": build}))
    for count in BATCHES:
        batch: dict[str, Any] = {"kind": "engine", "checkpoint": str(path)}
        batch["build"] = replace(in_bfloat16, max_batch_size=count)
        entries.append(Entry(f"trtstream bfloat16, {count} sessions", TORCH, batch, sessions=count))
    return entries


def _in_format(kind: str, path: Path, scratch: Path) -> Path:
    """The .gguf file ``path`` itself if its matrices have that format, else a copy that has it, in ``scratch``."""
    from benchmarks.compare.gguf_formats import shipped_format, write_in_format

    if shipped_format(path) == kind:
        return path
    copy = scratch / f"{kind}.gguf"
    if not copy.exists():
        write_in_format(path, kind, copy)
    return copy


def peer_entries(path: Path, checkpoint: Checkpoint, window: int, sinks: int, scratch: Path) -> list[Entry]:
    """The peers' entries with the checkpoint ``path``. llama.cpp's converted files go to ``scratch``."""
    settings = {"checkpoint": str(path), "build": _build(window, sinks)}
    return [
        Entry("recompute float32", TORCH, {"kind": "recompute", **settings}, every=RECOMPUTED),
        Entry("whole-cache rotation float32", TORCH, {"kind": "rotation", **settings}),
        Entry("ExecuTorch's positions float32", TORCH, {"kind": "executorch", **settings}),
        *_llama_cpp_entries(path, checkpoint, window, sinks, scratch),
        *_openvino_entries(path, checkpoint, window),
    ]


def _why_not(module: str, package: str, path: Path) -> str | None:
    """Why a peer that reads .gguf files cannot be measured, if it cannot."""
    if importlib.util.find_spec(module) is None:
        return f"not measured: {package} is not installed (extra `compare`)"
    if path.suffix.lower() != ".gguf":
        return "not measured: it reads .gguf files, and the checkpoint is not one"
    return None


def _openvino_entries(path: Path, checkpoint: Checkpoint, window: int) -> list[Entry]:
    why_not = _why_not("openvino_genai", "openvino-genai", path)
    settings = {"gguf": str(path), "model": checkpoint.model, "window": window}
    return [
        Entry(
            f"OpenVINO GenAI, {'evicts' if evict else 'keeps all'}",
            "benchmarks.compare.openvino_genai:OpenvinoGenai",
            {**settings, "evict": evict},
            why_not=why_not,
        )
        for evict in (True, False)
    ]


def _llama_cpp_entries(path: Path, checkpoint: Checkpoint, window: int, sinks: int, scratch: Path) -> list[Entry]:
    why_not = _why_not("llama_cpp", "llama-cpp-python", path)
    if why_not is not None:
        return [Entry("llama.cpp", why_not=why_not)]
    from benchmarks.compare.gguf_formats import shipped_format
    from benchmarks.compare.llama_cpp import DISCARDS

    files = {kind: _in_format(kind, path, scratch) for kind in (shipped_format(path), *LLAMA_CPP_FORMATS)}
    sizes = {"model": checkpoint.model, "window": window, "sinks": sinks}
    maker = "benchmarks.compare.llama_cpp:LlamaCpp"
    one = [
        Entry(f"llama.cpp {kind}, discards {discard}", maker, {"gguf": str(file), "discard": discard, **sizes})
        for kind, file in files.items()
        for discard in DISCARDS
    ]
    faster = {"gguf": str(files["F16"]), "discard": "half", **sizes}
    batches = [
        Entry(f"llama.cpp F16, discards half, {count} sessions", maker, {**faster, "sessions": count}, sessions=count)
        for count in BATCHES
    ]
    return one + batches


def _build(window: int, sinks: int) -> BuildConfig:
    return BuildConfig(
        max_batch_size=1, max_attention_window=window, sink_token_length=sinks, max_sink_token_length=sinks
    )
