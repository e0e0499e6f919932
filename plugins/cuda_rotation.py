"""The rotations of a step's tokens on a GPU, in the Triton language: one kernel, in float64 as `positions.rotation`.

No GPU has run it yet: it is tested in the Triton language's interpreter and compiled for sm_80, sm_90 and sm_120.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize_on_alignment=["at"])
def rotation_kernel(
    at,  # [N, 2] int64: t and p(t) of N tokens
    frequencies,  # [HALF] float64
    out,  # [N, 2, 2, HALF] float32: cos and sin at t, then at p(t)
    SCALE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    position = tl.program_id(0)
    pair = tl.arange(0, BLOCK)
    in_half = pair < HALF
    frequency = tl.load(frequencies + pair, mask=in_half, other=0.0)
    angle = tl.load(at + position).to(tl.float64) * frequency
    cos, sin = tl.cos(angle), tl.sin(angle)
    rotates = frequency != 0
    place = out + position * 2 * HALF + pair
    tl.store(place, tl.where(rotates, cos * SCALE, cos).to(tl.float32), mask=in_half)
    tl.store(place + HALF, (sin * SCALE).to(tl.float32), mask=in_half)


def launch_rotation(at: torch.Tensor, frequencies: torch.Tensor, scale: float) -> torch.Tensor:
    """`cuda_ops.step_rotation` by the kernel."""
    half = len(frequencies)
    out = at.new_empty(len(at), 4, half, dtype=torch.float32)
    with torch.cuda.device_of(at):
        rotation_kernel[(2 * len(at),)](at, frequencies, out, scale, half, triton.next_power_of_2(half))
    return out
