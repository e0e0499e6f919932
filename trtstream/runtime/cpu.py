"""The ``cpu`` target's backend: steps and chunks in a library, and one cache tensor for all sessions."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate, islice
from pathlib import Path

import torch

from trtstream.engine_dir import KERNEL, WEIGHTS, EngineConfig
from trtstream.plugins.chunk_attention import chunk_attention, plan_chunk
from trtstream.plugins.cpu_kernel import open_library
from trtstream.plugins.decode_plan import Step, chunk_steps, plan_step
from trtstream.plugins.kv_cache import new_cache
from trtstream.plugins.positions import PositionEncoding
from trtstream.runtime.cpu_step import LibraryStep
from trtstream.runtime.cpu_threads import CpuThreads
from trtstream.runtime.cpu_weights import read_cpu_weights
from trtstream.runtime.decoder import DecoderWeights, decode_layers, logits, multiplies_bfloat16
from trtstream.settings import BuildConfig, ModelConfig


class CpuBackend:
    """Runs on the CPU with torch's threads. See `trtstream.runtime.backend.Backend` for the methods.

    ``library`` computes decode steps and chunks, but torch the long ones in bfloat16 on CPUs that multiply bfloat16.
    Without it torch computes all, steps as chunks of one token: slower, and nothing has to be compiled.
    """

    spare_slots = 0

    def __init__(
        self, model: ModelConfig, build: BuildConfig, weights: DecoderWeights, library: ctypes.CDLL | None = None
    ) -> None:
        self._model = model
        self.weights = weights
        self._step = None if library is None else LibraryStep(library, model, build, weights)
        in_bfloat16 = build.dtype == "bfloat16" and build.quantization == "none"
        self._chunks_in_torch = library is None or (in_bfloat16 and multiplies_bfloat16())
        self._threads = CpuThreads()
        self._positions = PositionEncoding.of(model)
        # Zeroing it again touches its pages, so that a lack of memory shows at load.
        self._cache = new_cache(model, build, "cpu", torch.device("cpu")).zero_()

    def decode(self, steps: Sequence[Step], tokens: Sequence[int]) -> torch.Tensor:
        if self._step is None:
            return torch.cat([self.prefill(step, [token], 1) for step, token in zip(steps, tokens, strict=True)])
        return self._library_step(self._step, steps, tokens, range(len(steps)))

    def prefill(self, first: Step, tokens: Sequence[int], num_logits: int) -> torch.Tensor:
        wanted = range(len(tokens) - num_logits, len(tokens))
        if self._step is not None and len(tokens) <= self._step.max_tokens:
            return self._library_step(self._step, chunk_steps(first, len(tokens)), tokens, wanted)
        self._threads.follow()
        if self._step is not None and not self._chunks_in_torch:
            rows = plan_step(self._positions, chunk_steps(first, len(tokens)))
            return self._step.chunk(tokens, self._cache, rows, num_logits)
        plan = plan_chunk(first.window, self._positions, first.t, len(tokens), first.ring_first)

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return chunk_attention(qkv, self._cache[first.lane, layer], plan, self._model.num_attention_heads)

        embedded = self.weights.float_embedding[torch.tensor(tokens)]
        hidden = decode_layers(embedded, self.weights, self._model, attention)
        return logits(hidden[wanted.start :], self.weights, self._model).float()

    def mixed(
        self, steps: Sequence[Step], tokens: Sequence[int], chunks: Sequence[tuple[Step, Sequence[int]]]
    ) -> torch.Tensor:
        together = [*tokens, *(token for _, ids in chunks for token in ids)]
        if self._step is None or len(together) > self._step.max_tokens:
            parts = [self.decode(steps, tokens)] if steps else []
            return torch.cat([*parts, *(self.prefill(first, ids, 1) for first, ids in chunks)])
        rows = [*steps, *(step for first, ids in chunks for step in chunk_steps(first, len(ids)))]
        ends = accumulate((len(ids) for _, ids in chunks), initial=len(steps) - 1)
        wanted = [*range(len(steps)), *islice(ends, 1, None)]
        return self._library_step(self._step, rows, together, wanted)

    def session_cache(self, lane: int) -> torch.Tensor:
        return self._cache[lane]

    def _library_step(
        self, step: LibraryStep, rows: Sequence[Step], tokens: Sequence[int], wanted: Sequence[int]
    ) -> torch.Tensor:
        self._threads.follow()
        return step(tokens, self._cache, plan_step(self._positions, rows), wanted)


def load(folder: Path, config: EngineConfig) -> CpuBackend:
    """See `trtstream.targets.Target`."""
    model, build = config.pretrained_config, config.build_config
    library = open_library(folder / KERNEL, model, build)
    weights = read_cpu_weights(folder / WEIGHTS, model, build.dtype, library)
    return CpuBackend(model, build, weights, library)
