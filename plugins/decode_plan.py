"""What a kernel needs to know of one decode step, for every target that decodes with a kernel of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from trtstream.plugins.positions import PositionEncoding
from trtstream.plugins.window import Window


class Row(NamedTuple):
    """Where one session stands at a decode step. The kernels read its fields by their order."""

    slot: int
    write: int
    num_sinks: int
    ring_count: int
    newest: int
    cache_position: int


@dataclass(frozen=True)
class Step:
    """The next token of one session: number t, in a ring that begins with token ``ring_first`` (>= S)."""

    slot: int
    window: Window
    t: int
    ring_first: int

    def row(self) -> Row:
        """The token is written first and attended to after."""
        window, t = self.window, self.t
        return Row(
            slot=self.slot,
            write=window.slot(t),
            num_sinks=min(window.sinks, t + 1),
            ring_count=min(window.ring, max(t + 1 - self.ring_first, 0)),
            newest=(t - window.sinks) % window.ring,
            cache_position=window.cache_position(t),
        )


@dataclass(frozen=True)
class StepPlan:
    """What every layer needs to know of one decode step of several sessions: computed once, used L times."""

    rows: torch.Tensor  # [batch, 6] int64
    rotation: torch.Tensor | None  # [batch, 4, head_dim / 2] float32: cos and sin at t, then at p(t)
    slopes: torch.Tensor | None  # [heads] float32


def plan_step(positions: PositionEncoding, steps: Sequence[Step]) -> StepPlan:
    """Plan one token for each of several sessions."""
    at = torch.tensor([[step.t, step.window.cache_position(step.t)] for step in steps])
    rotation = step_rotation(positions, at) if positions.slopes is None else None
    return StepPlan(torch.tensor([step.row() for step in steps]), rotation, positions.slopes)


def step_rotation(positions: PositionEncoding, at: torch.Tensor) -> torch.Tensor:
    """cos t, sin t, cos p(t), sin p(t) [N, 4, head_dim / 2] (float32) of N tokens' t and p(t) ``at`` [N, 2] (int64).

    On any device that holds both ``at`` and the frequencies: a CUDA graph replays it.
    """
    return torch.stack(positions.rotation(at), dim=2).flatten(1, 2)
