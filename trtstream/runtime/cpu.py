"""The ``cpu`` target's backend: the decoder in torch, our attention kernel, one cache tensor for all sessions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from trtstream.engine_dir import KERNEL, WEIGHTS, EngineConfig
from trtstream.plugins.chunk_attention import ChunkPlan, chunk_attention, plan_chunk
from trtstream.plugins.cpu_kernel import DecodeKernel
from trtstream.plugins.decode_plan import Step, plan_step
from trtstream.plugins.kv_cache import new_cache
from trtstream.plugins.positions import PositionEncoding
from trtstream.runtime.cpu_threads import CpuThreads
from trtstream.runtime.decoder import Attention, DecoderWeights, decode_layers, logits, read_weights
from trtstream.settings import BuildConfig, ModelConfig


class CpuBackend:
    """Runs on the CPU with torch's threads. See `trtstream.runtime.backend.Backend` for the methods.

    The kernel computes decode steps. Without one they are chunks of one token: slower, and nothing has to be compiled.
    """

    spare_slots = 0

    def __init__(
        self, model: ModelConfig, build: BuildConfig, weights: DecoderWeights, kernel: DecodeKernel | None = None
    ) -> None:
        self._model = model
        self.weights = weights
        self._kernel = kernel
        self._threads = CpuThreads()
        self._positions = PositionEncoding.of(model)
        # Zeroing it again touches its pages, so that a lack of memory shows at load.
        self._cache = new_cache(model, build, "cpu", torch.device("cpu")).zero_()

    def decode(self, steps: Sequence[Step], tokens: Sequence[int]) -> torch.Tensor:
        kernel = self._kernel
        if kernel is None:
            return torch.cat([self.prefill(step, [token], 1) for step, token in zip(steps, tokens, strict=True)])
        plan = plan_step(self._positions, steps)

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return kernel(qkv, self._cache[:, layer], plan)

        return self._logits(self._hidden(tokens, attention))

    def prefill(self, first: Step, tokens: Sequence[int], num_logits: int) -> torch.Tensor:
        plan = self._plan(first, tokens)

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return chunk_attention(qkv, self._cache[first.lane, layer], plan, self._model.num_attention_heads)

        return self._logits(self._hidden(tokens, attention)[len(tokens) - num_logits :])

    def mixed(
        self, steps: Sequence[Step], tokens: Sequence[int], chunks: Sequence[tuple[Step, Sequence[int]]]
    ) -> torch.Tensor:
        kernel = self._kernel
        if kernel is None:
            chunks = [*((step, [token]) for step, token in zip(steps, tokens, strict=True)), *chunks]
            steps, tokens = (), ()
        step_plan = plan_step(self._positions, steps) if steps else None
        plans = [
            plan_chunk(first.window, self._positions, first.t, len(ids), first.ring_first) for first, ids in chunks
        ]
        rows = [len(steps), *(len(ids) for _, ids in chunks)]

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            decoding, *prefilling = qkv.split(rows)
            outs = [
                chunk_attention(part, self._cache[first.lane, layer], plan, self._model.num_attention_heads)
                for part, (first, _), plan in zip(prefilling, chunks, plans, strict=True)
            ]
            if kernel is not None and step_plan is not None:
                outs.insert(0, kernel(decoding, self._cache[:, layer], step_plan))
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
        embedded = self.weights.embedding[torch.tensor(tokens)]
        return decode_layers(embedded, self.weights, self._model, attention)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return logits(hidden, self.weights, self._model).float()


def load(folder: Path, config: EngineConfig) -> CpuBackend:
    """See `trtstream.targets.Target`."""
    model, build = config.pretrained_config, config.build_config
    kernel = DecodeKernel(folder / KERNEL, model, build)
    return CpuBackend(model, build, read_weights(folder / WEIGHTS, model, torch.device("cpu"), pack=True), kernel)
