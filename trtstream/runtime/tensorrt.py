"""The backend of the ``tensorrt`` and ``tensorrt-rtx`` targets: it lays out caches and inputs, and an `Executor` runs.

`trtstream.plugins.tensorrt_io` defines the network's inputs and outputs. Nothing here waits for the GPU: a call's
integers go up in one copy, and its logits stay there. The device is the executor's; in tests it may be the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from trtstream.plugins.decode_plan import Step, step_rotation
from trtstream.plugins.kv_cache import cache_slots, new_cache, spare_slots
from trtstream.plugins.positions import PositionEncoding
from trtstream.plugins.tensorrt_io import (
    DECODE,
    LOGITS,
    LOGITS_ROWS,
    PREFILL,
    QUERIES,
    ROTATION,
    ROWS,
    SCORE,
    TOKENS,
    WRITE_SLOTS,
    cache_names,
    chunk_lengths,
    queries,
    row,
)
from trtstream.plugins.window import Window
from trtstream.progress import Progress
from trtstream.runtime.static_steps import Run, batch_sizes, host_tensor, static_steps
from trtstream.settings import BuildConfig, ModelConfig

Call = Callable[[Mapping[str, torch.Tensor]], None]
"""Runs the network on its inputs and its output ``logits``, by name; it updates the caches in place."""


class Executor(Protocol):
    """Runs a network on ``device``, in the order of the calls, however asynchronous the device."""

    device: torch.device

    def new_call(self, profile: str) -> Call:
        """A call with its own state, of one of `trtstream.plugins.tensorrt_io.PROFILES`."""

    def can_capture(self) -> bool:
        """Whether the call that ran last can be captured into a CUDA graph."""


class TensorrtBackend:
    """See `trtstream.runtime.backend.Backend` for the methods.

    A session's lane is its row of the batch, because a batch's caches are one tensor. So a decode step takes the
    smallest batch size that reaches the last of its lanes. Rows of idle sessions write to the scratch slot of their
    cache only, which is zeroed afterwards. ``steps`` are the decode steps by batch size.
    """

    def __init__(
        self,
        model: ModelConfig,
        build: BuildConfig,
        target: str,
        executor: Executor,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """``progress(done, total)`` is called as the decode step of each batch size is prepared."""
        self.spare_slots = spare_slots(model, build, target)
        self._model = model
        self._device = device = executor.device
        self._positions = PositionEncoding.of(model).to(device)
        self._scratch_slot = cache_slots(model, build, target) - 1
        self._cache = new_cache(model, build, target, device)
        self._executor = executor
        self._calls = {profile: executor.new_call(profile) for profile in (PREFILL, SCORE)}
        self.steps = static_steps(
            batch_sizes(build.max_batch_size), self._idle, self._new_step, device, progress, executor.can_capture
        )
        # After the captures: TensorRT-RTX compiles kernels for prefill's shapes in the background, and a kernel that it
        # loads would break a capture.
        self._warm_up(build)

    def decode(self, steps: Sequence[Step], tokens: Sequence[int]) -> torch.Tensor:
        fed = {}
        for step, token in zip(steps, tokens, strict=True):
            self._clear_if_new(step)
            fed[step.lane] = step, [token]
        batch = next(batch for batch in self.steps if batch.size > max(fed))
        logits = batch(self._values([fed.get(lane) for lane in range(batch.size)]))
        return torch.stack([logits[step.lane] for step in steps])

    def prefill(self, first: Step, tokens: Sequence[int], num_logits: int) -> torch.Tensor:
        self._clear_if_new(first)
        without_logits = len(tokens) - num_logits
        start, pieces = 0, []
        for length in chunk_lengths(first.window, first.t, len(tokens)):
            end = start + length
            wanted = min(length, max(end - without_logits, 0))
            logits = self._feed(replace(first, t=first.t + start), tokens[start:end], max(wanted, 1))
            pieces.append(logits[len(logits) - wanted :])
            start = end
        return torch.cat(pieces)

    def session_cache(self, lane: int) -> torch.Tensor:
        return self._cache[lane]

    def _clear_if_new(self, step: Step) -> None:
        """Zero the cache of a session that begins.

        Masks are added to scores, so a NaN that the lane's last session left (an overflow in float16, say) would reach
        every token of this one, visible or not.
        """
        if step.t == (0 if step.window.sinks else step.ring_first):  # without sinks a rebuilt session begins later
            self.session_cache(step.lane).zero_()

    def _feed(self, step: Step, tokens: Sequence[int], num_logits: int) -> torch.Tensor:
        """Feed tokens that are written to contiguous slots; the logits [num_logits, vocab] after the last of them."""
        values = host_tensor(self._values([(step, tokens)]), self._device).to(self._device, non_blocking=True)
        logits = torch.empty(num_logits, self._model.vocab_size, device=self._device)
        rows = torch.arange(len(tokens) - num_logits, len(tokens), dtype=torch.int32, device=self._device)
        tensors = self._tensors(values, slice(step.lane, step.lane + 1), rows, logits)
        self._calls[PREFILL if num_logits == 1 else SCORE](tensors)
        return logits

    def _new_step(self, size: int, inputs: torch.Tensor) -> Run:
        call = self._executor.new_call(DECODE)
        logits = torch.empty(size, self._model.vocab_size, device=self._device)
        rows = torch.arange(size, dtype=torch.int32, device=self._device)
        scratch = self._cache[:size, ..., self._scratch_slot, :]

        def run() -> torch.Tensor:
            call(self._tensors(inputs, slice(size), rows, logits))
            scratch.zero_()  # a NaN that an idle session wrote would stay, as in `_clear_if_new`
            return logits

        return run

    def _values(self, fed: Sequence[tuple[Step, Sequence[int]] | None]) -> list[int]:
        """The network's integers for T tokens of each of B sessions; None is an idle session.

        For each token its id, t, p(t) and how many follow; then for each session its first token's slot and ``rows``.
        """
        token_values: list[int] = []
        session_values: list[int] = []
        for session in fed:
            if session is None:
                token_values += (0, 0, 0, 0)
                session_values += (self._scratch_slot, 0, 0, 0)
                continue
            step, tokens = session
            for t, (token, query) in enumerate(zip(tokens, queries(step, len(tokens)), strict=True), step.t):
                token_values += (token, t, *query)
            session_values += (step.window.slot(step.t), *row(step, len(tokens)))
        return token_values + session_values

    def _idle(self, size: int) -> list[int]:
        return self._values([None] * size)

    def _tensors(
        self, values: torch.Tensor, lanes: slice, logits_rows: torch.Tensor, logits: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The network's tensors by name, from the ``values`` (int64) of a slice of the lanes."""
        caches = self._cache[lanes]
        batch = len(caches)
        token_values = values[: -4 * batch].view(batch, -1, 4)
        session_values = values[-4 * batch :].view(batch, 4)
        integers = {
            TOKENS: token_values[..., 0],
            QUERIES: token_values[..., 2:],
            WRITE_SLOTS: session_values[:, 0],
            ROWS: session_values[:, 1:],
        }
        tensors = {
            name: tensor.to(torch.int32, memory_format=torch.contiguous_format) for name, tensor in integers.items()
        }
        rotation = step_rotation(self._positions, token_values[..., 1:3].flatten(0, 1))
        if rotation is not None:
            tensors[ROTATION] = rotation.unflatten(0, (batch, -1))
        for names, pair in zip(cache_names(self._model), caches.movedim(0, 2), strict=True):
            tensors |= zip(names, pair, strict=True)
        return {**tensors, LOGITS_ROWS: logits_rows, LOGITS: logits}

    @torch.inference_mode()
    def _warm_up(self, build: BuildConfig) -> None:
        """Run a first call, which is slow, before the first request comes."""
        window = Window(build.sink_token_length, build.max_sink_token_length, build.ring, self.spare_slots)
        self.prefill(Step(0, window, 0, window.sinks), [0] * build.max_num_tokens, 1)
