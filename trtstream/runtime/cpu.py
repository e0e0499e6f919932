"""The ``cpu`` target's backend: decode steps in a library, chunks in torch, one cache tensor for all sessions."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch

from trtstream.engine_dir import KERNEL, WEIGHTS, EngineConfig
from trtstream.plugins.chunk_attention import ChunkPlan, chunk_attention, plan_chunk
from trtstream.plugins.cpu_kernel import open_library
from trtstream.plugins.decode_plan import Step, plan_step
from trtstream.plugins.kv_cache import new_cache
from trtstream.plugins.positions import PositionEncoding
from trtstream.runtime.cpu_step import DecodeAttention, DecodeStep, with_products
from trtstream.runtime.cpu_threads import CpuThreads
from trtstream.runtime.cpu_weights import read_cpu_weights
from trtstream.runtime.decoder import Attention, DecoderWeights, decode_layers, logits
from trtstream.settings import BuildConfig, ModelConfig


class CpuBackend:
    """Runs on the CPU with torch's threads. See `trtstream.runtime.backend.Backend` for the methods.

    ``library`` computes decode steps. Without it they are chunks of one token: slower, and nothing has to be compiled.
    """

    spare_slots = 0

    def __init__(
        self, model: ModelConfig, build: BuildConfig, weights: DecoderWeights, library: ctypes.CDLL | None = None
    ) -> None:
        self._model = model
        self.weights = weights if library is None else with_products(library, weights)
        self._step = None if library is None else DecodeStep(library, model, build, weights)
        self._attention = None if library is None else DecodeAttention(library, model, build)
        self._threads = CpuThreads()
        self._positions = PositionEncoding.of(model)
        # Zeroing it again touches its pages, so that a lack of memory shows at load.
        self._cache = new_cache(model, build, "cpu", torch.device("cpu")).zero_()

    def decode(self, steps: Sequence[Step], tokens: Sequence[int]) -> torch.Tensor:
        if self._step is None:
            return torch.cat([self.prefill(step, [token], 1) for step, token in zip(steps, tokens, strict=True)])
        self._threads.follow()
        return self._step(tokens, self._cache, plan_step(self._positions, steps))

    def prefill(self, first: Step, tokens: Sequence[int], num_logits: int) -> torch.Tensor:
        plan = self._plan(first, tokens)

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return chunk_attention(qkv, self._cache[first.lane, layer], plan, self._model.num_attention_heads)

        return self._logits(self._hidden(tokens, attention)[len(tokens) - num_logits :])

    def mixed(
        self, steps: Sequence[Step], tokens: Sequence[int], chunks: Sequence[tuple[Step, Sequence[int]]]
    ) -> torch.Tensor:
        decode_attention = self._attention
        if decode_attention is None:
            chunks = [*((first, [token]) for first, token in zip(steps, tokens, strict=True)), *chunks]
            steps, tokens = (), ()
        step_plan = plan_step(self._positions, steps) if steps else None
        plans = [self._plan(first, ids) for first, ids in chunks]
        rows = [len(steps), *(len(ids) for _, ids in chunks)]

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            decoding, *prefilling = qkv.split(rows)
            outs = [
                chunk_attention(part, self._cache[first.lane, layer], plan, self._model.num_attention_heads)
                for part, (first, _), plan in zip(prefilling, chunks, plans, strict=True)
            ]
            if decode_attention is not None and step_plan is not None:
                outs.insert(0, decode_attention(decoding, self._cache[:, layer], step_plan))
            return torch.cat(outs)

        hidden = self._hidden([*tokens, *(token for _, ids in chunks for token in ids)], attention)
        last = torch.tensor(rows).cumsum(0)[1:] - 1
        return self._logits(hidden[torch.cat((torch.arange(len(steps)), last))])

    def session_cache(self, lane: int) -> torch.Tensor:
        return self._cache[lane]

    def _plan(self, first: Step, tokens: Sequence[int]) -> ChunkPlan:
        return plan_chunk(first.window, self._positions, first.t, len(tokens), first.ring_first)

    def _hidden(self, tokens: Sequence[int], attention: Attention) -> torch.Tensor:
        self._threads.follow()
        return decode_layers(self._embed(tokens), self.weights, self._model, attention)

    def _embed(self, tokens: Sequence[int]) -> torch.Tensor:
        if self._step is not None:
            return self._step.embed(tokens).to(self._cache.dtype)
        return self.weights.float_embedding[torch.tensor(tokens)]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return logits(hidden, self.weights, self._model).float()


def load(folder: Path, config: EngineConfig) -> CpuBackend:
    """See `trtstream.targets.Target`."""
    model, build = config.pretrained_config, config.build_config
    library = open_library(folder / KERNEL, model, build)
    weights = read_cpu_weights(folder / WEIGHTS, model, build.dtype, library)
    return CpuBackend(model, build, weights, library)
