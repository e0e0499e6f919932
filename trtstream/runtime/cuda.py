"""The ``cuda`` target's backend: decode steps and short prompts as CUDA graphs, our kernels, a cache for all sessions.

Nothing here waits for the GPU: a call's integers go up in one copy, and the logits stay there. The device may also be
the CPU, where the kernels' definition computes and nothing is captured, so that tests need no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from trtstream.engine_dir import WEIGHTS, EngineConfig
from trtstream.plugins import cuda_ops
from trtstream.plugins.cuda_device import check_kv_dtype
from trtstream.plugins.decode_plan import ChunkRow, Row, Step
from trtstream.plugins.kv_cache import new_cache
from trtstream.plugins.positions import PositionEncoding
from trtstream.plugins.window import Window
from trtstream.progress import Progress, progress_bar
from trtstream.runtime.decoder import DecoderWeights, decode_layers, logits, read_weights
from trtstream.runtime.static_steps import batch_sizes, host_tensor, static_steps
from trtstream.settings import BuildConfig, ModelConfig

PADDING = Row(lane=-1, write=0, num_sinks=0, ring_count=0, newest=0, cache_position=0)
# Tokens of the prompts that are CUDA graphs, to which shorter ones are padded: a GPU computes them faster than a host
# launches their kernels. Longer ones are bound by arithmetic.
PROMPT_SIZES = (16, 32, 64, 128, 256)


class Computation(nn.Module):
    """The whole model over all sessions' cache. Only the values of its inputs vary between calls."""

    cache: torch.Tensor
    arrivals: torch.Tensor

    def __init__(
        self, model: ModelConfig, weights: DecoderWeights, positions: PositionEncoding, cache: torch.Tensor, sinks: int
    ) -> None:
        """``cache`` [sessions, layers, 2, kv_heads, W, ...] has room for ``sinks`` sink tokens (S_max)."""
        super().__init__()
        self._model = model
        self._weights = weights
        self._positions = positions
        self._max_sinks = sinks
        self.register_buffer("cache", cache)
        heads = torch.zeros(len(cache) * model.num_attention_heads, dtype=torch.int32, device=cache.device)
        self.register_buffer("arrivals", heads)


class DecodeStep(Computation):
    """One token of each of B sessions."""

    def forward(self, tokens: torch.Tensor, rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Token ids [B], `Row`s [B, 6] and the tokens' t and p(t) [B, 2], all int64 -> logits [B, vocab] float32."""
        rotation, slopes = _rotation(self._positions, at), self._positions.slopes

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return cuda_ops.decode_attention(
                qkv, self.cache[:, layer], rows, rotation, slopes, self.arrivals, self._max_sinks
            )

        hidden = decode_layers(self._weights.float_embedding[tokens], self._weights, self._model, attention)
        return logits(hidden, self._weights, self._model).float()


class PrefillStep(Computation):
    """A chunk of one session's tokens."""

    def forward(self, row: torch.Tensor, last: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """A `ChunkRow` [5] and the ids [T] of its tokens, then of padding -> logits [N, vocab] float32.

        Those are the logits after the tokens ``last`` [N], counted from the chunk's first. All are int64.
        """
        t = row[1] + torch.arange(len(tokens), device=tokens.device)
        capacity = row[3] + self.cache.shape[4] - self._max_sinks
        rotation = _rotation(self._positions, torch.stack((t, t.minimum(capacity - 1)), dim=1))
        slopes = self._positions.slopes

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return cuda_ops.chunk_attention(qkv, self.cache[:, layer], row, rotation, slopes, self._max_sinks)

        hidden = decode_layers(self._weights.float_embedding[tokens], self._weights, self._model, attention)
        return logits(hidden[last], self._weights, self._model).float()


class CudaBackend:
    """See `trtstream.runtime.backend.Backend` for the methods.

    ``steps`` are the decode steps by batch size, ``prompts`` the prefill steps by number of tokens.
    """

    spare_slots = 0

    def __init__(
        self,
        model: ModelConfig,
        build: BuildConfig,
        weights: DecoderWeights,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """``weights`` are on the device in the engine's dtype; ``progress(done, total)`` is called for each graph."""
        self._device = device = weights.float_embedding.device
        self._cache = new_cache(model, build, "cuda", device)
        parts = model, weights, PositionEncoding.of(model).to(device), self._cache, build.max_sink_token_length
        self._chunk = PrefillStep(*parts)
        if device.type == "cuda":
            self.warm_up(build)
        prompts = sorted({min(size, build.max_num_tokens) for size in PROMPT_SIZES})
        batches = batch_sizes(build.max_batch_size)
        total = len(prompts) + len(batches)
        self.prompts = static_steps(
            prompts, _no_prompt, partial(_bind_prompt, self._chunk), device, lambda done, _: progress(done, total)
        )
        self.steps = static_steps(
            batches,
            _padding,
            partial(_bind, DecodeStep(*parts)),
            device,
            lambda done, _: progress(len(prompts) + done, total),
        )

    def decode(self, steps: Sequence[Step], tokens: Sequence[int]) -> torch.Tensor:
        batch = next(step for step in self.steps if step.size >= len(steps))
        padding = batch.size - len(steps)
        rows = [*(step.row() for step in steps), *[PADDING] * padding]
        values = [*tokens, *[0] * padding, *chain.from_iterable(rows)]
        for step in steps:
            values += (step.t, step.window.cache_position(step.t))
        values += [0] * (2 * padding)
        return batch(values)[: len(steps)].clone()

    def prefill(self, first: Step, tokens: Sequence[int], num_logits: int) -> torch.Tensor:
        row, length = first.chunk(len(tokens)), len(tokens)
        prompt = next((step for step in self.prompts if step.size >= length), None)
        if prompt is not None and num_logits <= 1:
            padding = [0] * (prompt.size - length)
            return prompt([*row, length - 1, *tokens, *padding])[:num_logits].clone()
        values = host_tensor([*row, *tokens], self._device).to(self._device, non_blocking=True)
        last = torch.arange(length - max(num_logits, 1), length, device=self._device)
        return self._chunk(values[: len(row)], last, values[len(row) :])[:num_logits]

    def session_cache(self, lane: int) -> torch.Tensor:
        return self._cache[lane]

    @torch.inference_mode()
    def warm_up(self, build: BuildConfig) -> None:
        """Feed a longest chunk, which is no CUDA graph, before the first request comes."""
        window = Window(build.sink_token_length, build.max_sink_token_length, build.ring)
        length = build.max_num_tokens
        row = torch.tensor(Step(0, window, 0, window.sinks).chunk(length), device=self._device)
        tokens = torch.zeros(length, dtype=torch.int64, device=self._device)
        self._chunk(row, tokens[:1], tokens)


def _rotation(positions: PositionEncoding, at: torch.Tensor) -> torch.Tensor | None:
    """The rotations of tokens' t and p(t) ``at`` [N, 2] (int64) for the kernels; None with ALiBi."""
    if positions.frequencies is None:
        return None
    return cuda_ops.step_rotation(at, positions.frequencies, positions.scale)


def _padding(size: int) -> list[int]:
    """The inputs of a decode step: B tokens, then B rows, then B pairs of t and p(t), all padding."""
    return [*[0] * size, *PADDING * size, *[0] * (2 * size)]


def _bind(step: DecodeStep, size: int, inputs: torch.Tensor) -> Callable[[], torch.Tensor]:
    """``step`` on the inputs that `_padding` lays out."""
    return partial(step, inputs[:size], inputs[size : 7 * size].view(size, 6), inputs[7 * size :].view(size, 2))


def _no_prompt(size: int) -> list[int]:
    """The inputs of a prefill step: its row, its last token's place and T ids, of no token."""
    return [*ChunkRow(lane=0, first=0, length=0, sinks=0, ring_first=0), *[0] * (1 + size)]


def _bind_prompt(step: PrefillStep, size: int, inputs: torch.Tensor) -> Callable[[], torch.Tensor]:
    """``step`` on the inputs that `_no_prompt` lays out."""
    return partial(step, *inputs.split((5, 1, size)))


def load(folder: Path, config: EngineConfig) -> CudaBackend:
    """See `trtstream.targets.Target`."""
    model, build = config.pretrained_config, config.build_config
    check_kv_dtype(build.kv_dtype)
    device = torch.device("cuda", torch.cuda.current_device())
    weights = read_weights(folder / WEIGHTS, model, device)
    with progress_bar("Capturing CUDA graphs") as progress:
        return CudaBackend(model, build, weights, progress)
