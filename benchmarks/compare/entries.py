"""Who takes part: every format of this engine, and the peers that were asked for and can be had."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtstream.settings import BuildConfig, check_against_model
from trtstream.targets import TARGETS

if TYPE_CHECKING:
    from trtstream.build.checkpoint import Checkpoint

TORCH = "benchmarks.compare.contestants:make"
STEPS = 16  # tokens that are decoded in a turn
PEERS = ("recompute", "rotation", "llama.cpp")
LLAMA_CPP_FORMATS = ("Q8_0", "F16")  # besides the one that the checkpoint has
RECOMPUTED = 8  # recompute predicts each so many-th token, as one takes long


@dataclass(frozen=True)
class Entry:
    """A contestant before it runs. ``maker`` makes it of ``settings``, in its own process; None: ``note`` says why."""

    name: str
    maker: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    every: int = 1  # predicts each so many-th token
    evaluates: bool = False
    prefills: bool = False


def memory() -> Entry:
    """What gives the floor, once a turn."""
    return Entry("memory", "benchmarks.compare.contestants:memory", every=STEPS)


def our_entries(path: Path, checkpoint: Checkpoint, window: int, sinks: int) -> list[Entry]:
    """This engine in each format that the cpu target has; float32 unquantized, which all is compared with, first.

    Raises TrtstreamError for a window that cannot be, or that the checkpoint ``path`` was not trained for.
    """
    formats = TARGETS["cpu"]
    entries = []
    for quantization in formats.quantizations:
        for dtype in formats.dtypes:
            name = f"trtstream {dtype}" + ("" if quantization == "none" else f" {quantization}")
            build = _build(window, sinks, dtype=dtype, quantization=quantization)
            build.validate("cpu")
            check_against_model(build, checkpoint.model, force=False)
            settings = {"kind": "engine", "checkpoint": str(path), "build": build}
            entries.append(Entry(name, TORCH, settings, "prompts in chunks, exactly", evaluates=True, prefills=True))
    return entries


def peer_entries(
    peers: Sequence[str], path: Path, checkpoint: Checkpoint, window: int, sinks: int, scratch: Path
) -> list[Entry]:
    """Those of ``peers``, of the checkpoint ``path``. What is made of it for llama.cpp goes to ``scratch``."""
    settings = {"checkpoint": str(path), "build": _build(window, sinks)}
    found = []
    if "recompute" in peers:
        from benchmarks.compare.contestants import runs_on_transformers

        by = "transformers" if runs_on_transformers(checkpoint) else "our own torch"
        note = f"by {by}, every {RECOMPUTED}th token; the prompt is one dense pass over W tokens"
        made = {"kind": "recompute", **settings}
        found.append(Entry("recompute float32", TORCH, made, note, every=RECOMPUTED, prefills=True))
    if "rotation" in peers:
        note = "the paper's method, in our own torch; prompts token by token"
        made = {"kind": "rotation", **settings}
        found.append(Entry("whole-cache rotation float32", TORCH, made, note, evaluates=True))
    if "llama.cpp" in peers:
        found += _llama_cpp_entries(path, checkpoint, window, sinks, scratch)
    return found


def _llama_cpp_entries(path: Path, checkpoint: Checkpoint, window: int, sinks: int, scratch: Path) -> list[Entry]:
    if importlib.util.find_spec("llama_cpp") is None:
        return [Entry("llama.cpp", None, note="not measured: llama-cpp-python is not installed (extra `compare`)")]
    if path.suffix.lower() != ".gguf":
        return [Entry("llama.cpp", None, note="not measured: it reads .gguf files, and the checkpoint is none")]
    from benchmarks.compare.gguf_formats import shipped_format, write_in_format
    from benchmarks.compare.llama_cpp import DISCARDS

    files = {shipped_format(path): path}
    for kind in LLAMA_CPP_FORMATS:
        if kind not in files:
            files[kind] = scratch / f"{kind}.gguf"
            write_in_format(path, kind, files[kind])
    maker = "benchmarks.compare.llama_cpp:LlamaCpp"
    version = importlib.metadata.version("llama-cpp-python")
    note = f"llama-cpp-python {version}, float16 cache; the prompt is one batch of W tokens"
    sizes = {"model": checkpoint.model, "window": window, "sinks": sinks}
    return [
        Entry(
            f"llama.cpp {kind}, discards {discard}",
            maker,
            {"gguf": str(file), "discard": discard, **sizes},
            note,
            prefills=True,
        )
        for kind, file in files.items()
        for discard in DISCARDS
    ]


def _build(window: int, sinks: int, **formats: str) -> BuildConfig:
    return BuildConfig(
        max_batch_size=1,
        max_attention_window=window,
        sink_token_length=sinks,
        max_sink_token_length=sinks,
        **formats,
    )
