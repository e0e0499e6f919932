"""The ``cuda`` target's backend: a decode step captured into CUDA graphs, our kernels, one cache for all sessions.

Nothing here waits for the GPU: a step's integers go up in one copy, and the logits stay there. The device may also be
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
from trtstream.plugins.decode_plan import Row, Step
from trtstream.plugins.kv_cache import new_cache
from trtstream.plugins.positions import PositionEncoding
from trtstream.plugins.quantized_linear import TOKEN_BLOCKS
from trtstream.plugins.window import Window
from trtstream.progress import Progress, progress_bar
from trtstream.runtime.batch_steps import batch_steps, host_tensor
from trtstream.runtime.decoder import DecoderWeights, decode_layers, logits, read_weights
from trtstream.settings import BuildConfig, ModelConfig

PADDING = Row(lane=-1, write=0, num_sinks=0, ring_count=0, newest=0, cache_position=0)


class DecodeStep(nn.Module):
    """One token of each of B sessions through the whole model. Only the values of its inputs vary between calls."""

    cache: torch.Tensor

    def __init__(
        self, model: ModelConfig, weights: DecoderWeights, positions: PositionEncoding, cache: torch.Tensor, sinks: int
    ) -> None:
        """``cache`` [sessions, layers, 2, kv_heads, W, head_dim] has room for ``sinks`` sink tokens (S_max)."""
        super().__init__()
        self._model = model
        self._weights = weights
        self._positions = positions
        self._max_sinks = sinks
        self.register_buffer("cache", cache)

    def forward(self, tokens: torch.Tensor, rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Token ids [B], `Row`s [B, 6] and the tokens' t and p(t) [B, 2], all int64 -> logits [B, vocab] float32."""
        rotation, slopes = _rotation(self._positions, at), self._positions.slopes

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return cuda_ops.decode_attention(qkv, self.cache[:, layer], rows, rotation, slopes, self._max_sinks)

        hidden = decode_layers(self._weights.float_embedding[tokens], self._weights, self._model, attention)
        return logits(hidden, self._weights, self._model).float()


class CudaBackend:
    """See `trtstream.runtime.backend.Backend` for the methods. ``steps`` are the decode steps by batch size."""

    spare_slots = 0

    def __init__(
        self,
        model: ModelConfig,
        build: BuildConfig,
        weights: DecoderWeights,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """``weights`` are on the device in the engine's dtype; ``progress(done, total)`` is called for each graph."""
        self.weights = weights
        self._model = model
        self._device = device = weights.float_embedding.device
        self._positions = PositionEncoding.of(model).to(device)
        self._max_sinks = build.max_sink_token_length
        self._cache = new_cache(model, build, "cuda", device)
        if device.type == "cuda":
            self.warm_up(build)
        step = DecodeStep(model, weights, self._positions, self._cache, self._max_sinks)
        self.steps = batch_steps(build.max_batch_size, _padding, partial(_bind, step), device, progress)

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
        window, slopes = first.window, self._positions.slopes
        t = torch.arange(first.t, first.t + len(tokens), device=self._device)
        rotation = _rotation(self._positions, torch.stack((t, t.clamp(max=window.capacity - 1)), dim=1))

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            cache = self._cache[first.lane, layer]
            return cuda_ops.chunk_attention(
                qkv, cache, rotation, slopes, first.t, first.ring_first, window.sinks, window.max_sinks
            )

        token_ids = host_tensor(tokens, self._device).to(self._device, non_blocking=True)
        embedded = self.weights.float_embedding[token_ids]
        hidden = decode_layers(embedded, self.weights, self._model, attention)
        return logits(hidden[len(tokens) - num_logits :], self.weights, self._model).float()

    def session_cache(self, lane: int) -> torch.Tensor:
        return self._cache[lane]

    @torch.inference_mode()
    def warm_up(self, build: BuildConfig) -> None:
        """Compile the prefill kernels before the first request comes: those of a longest chunk, and of short ones,
        whose products have kernels for up to 8 tokens, and with quantized weights for 16, 32 and 64."""
        window = Window(build.sink_token_length, build.max_sink_token_length, build.ring)
        for length in {min(length, build.max_num_tokens) for length in (2, *TOKEN_BLOCKS, build.max_num_tokens)}:
            self.prefill(Step(0, window, 0, window.sinks), [0] * length, 1)


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


def load(folder: Path, config: EngineConfig) -> CudaBackend:
    """See `trtstream.targets.Target`."""
    model, build = config.pretrained_config, config.build_config
    device = torch.device("cuda", torch.cuda.current_device())
    weights = read_weights(folder / WEIGHTS, model, device)
    with progress_bar("Capturing CUDA graphs") as progress:
        return CudaBackend(model, build, weights, progress)
