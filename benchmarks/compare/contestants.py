"""The contestants that compute with torch: this engine, recompute, whole-cache rotation, and the memory itself."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import baselines
from benchmarks.compare.entries import RECOMPUTED
from benchmarks.compare.peer import Contestant
from benchmarks.models import step_bytes
from benchmarks.read_memory import FASTEST, read_loops
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.cpu import build_cpu_engine
from trtstream.runtime.cpu import CpuBackend
from trtstream.runtime.decoder import DecoderWeights, collect_weights
from trtstream.runtime.loading import load_engine
from trtstream.settings import BuildConfig, ModelConfig

MEMORY_BYTES = 1 << 29  # far more than any cache holds
NOTES = {
    baselines.WholeCacheRotation: "the paper's method, in our own torch; prompts token by token",
    baselines.ModuloPositions: "positions modulo twice the ring, in our own torch: its loss counts, and not its time",
}


class Memory:
    """Reads memory and does nothing else, as fast as it can be read here."""

    note = ""
    step_bytes = MEMORY_BYTES

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            self._read = read_loops(MEMORY_BYTES, torch.get_num_threads(), Path(scratch))[FASTEST]

    def feed(self, tokens: Sequence[int]) -> None:
        self._read()


class Engine:
    """This engine: one session, or several that all read the same text."""

    note = "prompts in chunks, exactly"

    def __init__(self, checkpoint: str, build: BuildConfig) -> None:
        self._lanes = range(build.max_batch_size)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "engine"
            build_cpu_engine(open_checkpoint(checkpoint), build, folder, lambda done, total: None)
            self._engine = load_engine(folder)
        assert isinstance(self._engine.backend, CpuBackend)
        self.step_bytes = step_bytes(self._engine.model, build, self._engine.backend.weights, len(self._lanes))

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        if len(tokens) == 1:
            return self._engine.decode(self._lanes, [*tokens] * len(self._lanes))[0].numpy()
        logits = [self._engine.prefill(lane, tokens) for lane in self._lanes]
        return logits[0].numpy()

    def evaluate(self, tokens: Sequence[int]) -> np.ndarray:
        return self._engine.score(0, tokens).numpy()

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        self._engine.reset(0)  # a new session, as the peers have
        return self._engine.prefill(0, tokens).numpy()


class Recompute:
    """A dense forward over the last W tokens for each prediction; of a prompt, the one forward."""

    def __init__(self, checkpoint: str, build: BuildConfig) -> None:
        model, weights = float32_weights(checkpoint, pack=False)
        self.step_bytes = step_bytes(model, build, weights, 1)
        by, self._logits = baselines.recompute(model, weights)
        by = {"torch": "our own torch"}.get(by, by)
        self.note = f"by {by}, every {RECOMPUTED}th token; the prompt is one dense pass over W tokens"
        self._visible: deque[int] = deque(maxlen=build.max_attention_window)

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        self._visible.extend(tokens)
        return self.prefill(self._visible)

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        return self._logits(torch.tensor(tokens)).numpy()


class Rotation:
    """The paper's method or ExecuTorch's positions, token by token, prompts too; projections are packed for oneDNN."""

    def __init__(self, checkpoint: str, build: BuildConfig, *, method: type[baselines.WholeCacheRotation]) -> None:
        model, weights = float32_weights(checkpoint, pack=True)
        self.step_bytes = step_bytes(model, build, weights, 1)
        self.note = NOTES[method]
        self._method = method(model, weights, build.sink_token_length, build.ring)
        self._last = torch.empty(0)

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        for token in tokens:
            self._last = self._method.step(torch.tensor([token]))
        return self._last.numpy()

    def evaluate(self, tokens: Sequence[int]) -> np.ndarray:
        log_probs = []
        for token in tokens:
            log_probs.append(self._last.log_softmax(dim=-1)[token].item())
            self.feed([token])
        return np.array(log_probs, dtype=np.float32)


def make(threads: int, kind: str, **settings: Any) -> Contestant:
    """A contestant that computes with that many threads."""
    torch.set_num_threads(threads)
    makers: dict[str, Callable[..., Contestant]] = {
        "memory": Memory,
        "engine": Engine,
        "recompute": Recompute,
        "rotation": partial(Rotation, method=baselines.WholeCacheRotation),
        "executorch": partial(Rotation, method=baselines.ModuloPositions),
    }
    return makers[kind](**settings)


def float32_weights(path: str, *, pack: bool) -> tuple[ModelConfig, DecoderWeights]:
    """The checkpoint's model and weights; for ``pack`` see `collect_weights`."""
    checkpoint = open_checkpoint(path)
    names = set(checkpoint.tensor_names())
    return checkpoint.model, collect_weights(
        checkpoint.model, names, lambda name: checkpoint.tensor(name).float(), pack=pack
    )
