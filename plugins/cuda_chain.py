"""Kernels of a decode step that start before the one before them has ended (programmatic dependent launch).

From compute capability 9.0 on, a kernel may be launched while the one before it still runs. It waits for that one's end
before it touches anything that a kernel writes: then whatever ran before has ended too, as each kernel either waits in
this way or is launched later. Until then it can set itself up, and have its weights fetched.

No GPU has run it yet: the machine code of sm_90 is tested for the order of its instructions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

CAPABILITY = (9, 0)
LINE_BYTES = tl.constexpr(128)


@triton.jit
def wait_for_last_kernel(CHAINED: tl.constexpr):
    """Wait until what kernels before this one have written can be read; the next one may be launched meanwhile."""
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def fetch_rows(weight, row, num_rows, num_columns, COLUMNS: tl.constexpr, CHAINED: tl.constexpr):
    """Have the second-level cache fetch the first COLUMNS of a weight's rows ``row`` [rows, 1]: before the wait."""
    if CHAINED:
        LINE: tl.constexpr = 8 * LINE_BYTES // weight.dtype.element_ty.primitive_bitwidth
        column = tl.minimum(tl.arange(0, COLUMNS // LINE)[None, :] * LINE, num_columns - 1)
        place = tl.minimum(row, num_rows - 1).to(tl.int64) * num_columns + column
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [weight + place], dtype=tl.int32, is_pure=False, pack=1
        )


def early_launch(device: torch.device) -> dict[str, bool]:
    """The constant and the option of Triton by which a kernel on ``device`` is launched early, or not."""
    chained = device.type != "cpu" and torch.cuda.is_available() and torch.cuda.get_device_capability() >= CAPABILITY
    return {"CHAINED": chained, "launch_pdl": chained}
