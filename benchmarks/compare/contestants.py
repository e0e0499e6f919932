"""The contestants that compute with torch: this engine, recompute, whole-cache rotation, and the memory itself."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.baselines import WholeCacheRotation, torch_recompute, transformers_recompute
from benchmarks.models import step_bytes
from trtstream.build.checkpoint import Checkpoint, open_checkpoint
from trtstream.build.cpu import build_cpu_engine
from trtstream.engine_dir import WEIGHTS
from trtstream.errors import TrtstreamError
from trtstream.runtime.decoder import DecoderWeights, collect_weights, read_weights
from trtstream.runtime.loading import load_engine
from trtstream.settings import BuildConfig, ModelConfig

MEMORY_BYTES = 1 << 29  # far more than any cache holds


class Memory:
    """Reads memory and does nothing else: a product of a matrix and a vector, the fastest read torch has here."""

    def __init__(self) -> None:
        self._matrix = torch.ones(MEMORY_BYTES >> 16, 1 << 14)
        self._vector = torch.ones(1 << 14)
        self.step_bytes = MEMORY_BYTES

    def feed(self, tokens: Sequence[int]) -> None:
        torch.mv(self._matrix, self._vector)


class Engine:
    """This engine, one session. A prompt runs in chunks, exactly, wherever the session stands."""

    def __init__(self, checkpoint: Checkpoint, build: BuildConfig) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "engine"
            build_cpu_engine(checkpoint, build, folder, lambda done, total: None)
            weights = read_weights(folder / WEIGHTS, checkpoint.model, torch.device("cpu"), pack=False)
            self.step_bytes = step_bytes(checkpoint.model, build, weights, 1)
            del weights
            self._engine = load_engine(folder)

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        if len(tokens) == 1:
            return self._engine.decode([0], tokens)[0].numpy()
        return self._engine.prefill(0, tokens).numpy()

    def evaluate(self, tokens: Sequence[int]) -> np.ndarray:
        return self._engine.score(0, tokens).numpy()

    def prefill(self, tokens: Sequence[int]) -> None:
        self._engine.prefill(0, tokens)


class Recompute:
    """A dense forward over the last W tokens for each prediction; of a prompt, the one forward."""

    def __init__(self, checkpoint: Checkpoint, build: BuildConfig) -> None:
        weights = float32_weights(checkpoint, pack=False)
        self.step_bytes = step_bytes(checkpoint.model, build, weights, 1)
        recompute = transformers_recompute if runs_on_transformers(checkpoint) else torch_recompute
        self._logits = recompute(checkpoint.model, weights)
        self._visible: deque[int] = deque(maxlen=build.max_attention_window)

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        self._visible.extend(tokens)
        return self._logits(torch.tensor(self._visible)).numpy()

    def prefill(self, tokens: Sequence[int]) -> None:
        self._logits(torch.tensor(tokens))


class Rotation:
    """The paper's method, token by token, prompts too; its projections are packed as this engine's are."""

    def __init__(self, checkpoint: Checkpoint, build: BuildConfig) -> None:
        if checkpoint.model.rope is None:
            raise TrtstreamError("the model has no rotary embedding: there is nothing to rotate")
        weights = float32_weights(checkpoint, pack=True)
        self.step_bytes = step_bytes(checkpoint.model, build, weights, 1)
        self._method = WholeCacheRotation(checkpoint.model, weights, build.sink_token_length, build.ring)
        self._last: torch.Tensor | None = None

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


def float32_weights(checkpoint: Checkpoint, *, pack: bool) -> DecoderWeights:
    names = set(checkpoint.tensor_names())
    return collect_weights(checkpoint.model, names, lambda name: checkpoint.tensor(name).float(), pack=pack)


def runs_on_transformers(checkpoint: Checkpoint) -> bool:
    """Whether recompute is transformers' own model; else it is the same in torch."""
    model: ModelConfig = checkpoint.model
    plain = model.architecture == "LlamaForCausalLM" and model.rope is not None and model.rope.kind == "default"
    return plain and not any(name.endswith(".bias") for name in checkpoint.tensor_names())


def memory(threads: int) -> Memory:
    torch.set_num_threads(threads)
    return Memory()


def make(threads: int, kind: str, checkpoint: str, build: BuildConfig) -> Engine | Recompute | Rotation:
    """The contestant of class ``kind``."""
    torch.set_num_threads(threads)
    return {"engine": Engine, "recompute": Recompute, "rotation": Rotation}[kind](open_checkpoint(checkpoint), build)
