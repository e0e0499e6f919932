"""Calls of GPU backends with static inputs, one for each of a few sizes, captured into CUDA graphs.

A decode step has one for each batch size 1, 2, 4, ...; smaller batches are padded. On the CPU nothing is captured, so
that tests need no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trtstream.progress import Progress

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

Run = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class StaticStep:
    """A call of up to ``size`` sessions or tokens: ``run`` reads ``inputs`` (int64) and returns logits.

    ``is_graph``: it is a CUDA graph.
    """

    size: int
    inputs: torch.Tensor
    run: Run
    is_graph: bool

    def __call__(self, values: Sequence[int]) -> torch.Tensor:
        """Run it on ``values``, with one copy to the device. The next run overwrites the logits."""
        self.inputs.copy_(host_tensor(values, self.inputs.device), non_blocking=True)
        return self.run()


def host_tensor(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """Values (int64) for a copy to ``device``, in pinned memory, which torch keeps until the copy is done."""
    return torch.tensor(values, pin_memory=device.type == "cuda")


def batch_sizes(max_batch_size: int) -> list[int]:
    """1, 2, 4, ... and the largest."""
    return sorted({*(2**i for i in range(max_batch_size.bit_length())), max_batch_size})


@torch.inference_mode()
def static_steps(
    sizes: Sequence[int],
    padding: Callable[[int], Sequence[int]],
    new_step: Callable[[int, torch.Tensor], Run],
    device: torch.device,
    progress: Progress,
    can_capture: Callable[[], bool] = lambda: True,
) -> list[StaticStep]:
    """A step for each of ``sizes``, which ascend.

    ``padding`` returns the inputs of a size in which no session takes part, and ``new_step`` the function to run on
    them, whose logits stay in one place. ``can_capture`` is called once a step has run for the first time.
    """
    pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    steps = []
    for done, size in enumerate(reversed(sizes)):  # the largest first: the others fit into its memory
        progress(done, len(sizes))
        inputs = torch.tensor(padding(size), device=device)
        run = new_step(size, inputs)
        graph = None if pool is None else _captured(run, pool, can_capture)
        steps.append(StaticStep(size, inputs, graph or run, is_graph=graph is not None))
    progress(len(sizes), len(sizes))
    return steps[::-1]


def _captured(run: Run, pool: _POOL_HANDLE, can_capture: Callable[[], bool]) -> Run | None:
    # Run once outside the capture, which allows neither compiling kernels nor setting up libraries. It is all
    # padding, so no session changes.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
        capture = can_capture()
    torch.cuda.current_stream().wait_stream(side)
    if not capture:
        return None
    graph = torch.cuda.CUDAGraph()
    # Other threads of the process may allocate or load a kernel meanwhile: that breaks neither them nor the capture.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay
