"""The inputs of the attention kernels for one step, the same for every target that uses our kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from trtstream.plugins.positions import PositionEncoding
from trtstream.plugins.window import Window


class Row(NamedTuple):
    """One token of a session at a step. The kernels read its fields by their order."""

    lane: int  # the session's place in the batch
    write: int  # slot of the new token
    num_sinks: int  # visible sinks, in slots [0, num_sinks)
    ring_count: int  # visible ring tokens, the new one included
    newest: int  # ring index of the newest of them
    cache_position: int  # p(t)


class ChunkRow(NamedTuple):
    """A chunk of consecutive tokens of one session. The kernels read its fields by their order."""

    lane: int  # the session's place in the batch
    first: int  # t of the first of them
    length: int
    sinks: int  # S
    ring_first: int  # the ring's first token (>= S)


@dataclass(frozen=True)
class Step:
    """The next token of the session in ``lane``: number t, in a ring that begins with token ``ring_first`` (>= S)."""

    lane: int
    window: Window
    t: int
    ring_first: int

    def row(self) -> Row:
        """The kernel's row: it writes the token first and then attends to it."""
        window, t = self.window, self.t
        return Row(
            lane=self.lane,
            write=window.slot(t),
            num_sinks=min(window.sinks, t + 1),
            ring_count=min(window.ring, max(t + 1 - self.ring_first, 0)),
            newest=(t - window.sinks) % window.ring,
            cache_position=window.cache_position(t),
        )

    def chunk(self, length: int) -> ChunkRow:
        """The kernel's row for ``length`` tokens that begin with this one."""
        return ChunkRow(self.lane, self.t, length, self.window.sinks, self.ring_first)


def chunk_steps(first: Step, length: int) -> list[Step]:
    """The steps of ``length`` tokens of one session, the first where ``first`` says."""
    return [replace(first, t=first.t + i) for i in range(length)]


@dataclass(frozen=True)
class StepPlan:
    """The inputs that all layers share for one step of several tokens."""

    rows: torch.Tensor  # [batch, 6] int64
    rotation: torch.Tensor | None  # [batch, 4, head_dim / 2] float32: cos and sin at t, then at p(t); None with ALiBi
    slopes: torch.Tensor | None  # [heads] float32; None with RoPE


def plan_step(positions: PositionEncoding, steps: Sequence[Step]) -> StepPlan:
    """Plan a token of each step: of several sessions, or several of a session, in their order."""
    at = torch.tensor([[step.t, step.window.cache_position(step.t)] for step in steps])
    rows = torch.tensor([step.row() for step in steps])
    return StepPlan(rows, step_rotation(positions, at), positions.slopes)


def step_rotation(positions: PositionEncoding, at: torch.Tensor) -> torch.Tensor | None:
    """cos t, sin t, cos p(t), sin p(t) [N, 4, head_dim / 2] (float32) of N tokens' t and p(t) ``at`` [N, 2] (int64).

    None with ALiBi. ``at`` and the frequencies may be on any device; a CUDA graph can replay it.
    """
    rotation = positions.rotation(at)
    return None if rotation is None else torch.stack(rotation, dim=2).flatten(1, 2)
