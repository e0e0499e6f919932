"""The custom ops as torch sees them: schemas, fakes and refusals."""

from __future__ import annotations

import pytest
import torch

from tests.plugins.streaming_layer import LAYOUTS, Session
from trtstream.plugins import cuda_ops  # noqa: F401
from trtstream.plugins.decode_plan import plan_step
from trtstream.plugins.window import Window

WINDOW = Window(2, 3, 9)


@pytest.mark.parametrize("layout", ["gqa", "alibi"])
def test_the_ops_do_what_they_register(layout: str) -> None:
    """They mutate the cache alone, and their fakes have the right shapes, so that torch.export can trust them."""
    session = Session(LAYOUTS[layout], WINDOW, 20, 5)
    slopes = session.layout.positions.slopes
    cache = session.cache(20).nan_to_num()[None].repeat(2, 1, 1, 1, 1)
    chunk = (session.new, cache, torch.tensor(session.step(1).chunk(4)), session.rotation(), slopes, 3)
    torch.library.opcheck(torch.ops.trtstream.chunk_attention.default, chunk)
    session = Session(LAYOUTS[layout], WINDOW, 20)
    cache = session.cache(20).nan_to_num()[None].repeat(2, 1, 1, 1, 1)
    plan = plan_step(session.layout.positions, [session.step(1)])
    arrivals = torch.zeros(session.layout.heads, dtype=torch.int32)
    step = (session.new, cache, plan.rows, plan.rotation, slopes, arrivals, 3)
    torch.library.opcheck(torch.ops.trtstream.decode_attention.default, step)
    frequencies = torch.rand(8, dtype=torch.float64)
    torch.library.opcheck(torch.ops.trtstream.step_rotation.default, (torch.tensor([[30, 11]]), frequencies, 1.5))


def test_a_layout_that_the_kernels_cannot_address_is_refused() -> None:
    session = Session(LAYOUTS["gqa"], WINDOW, 20, 5)
    transposed = session.cache(20).transpose(1, 2).contiguous().transpose(1, 2)
    row = torch.tensor(session.step(0).chunk(5))
    with pytest.raises(ValueError, match="session is not contiguous"):
        torch.ops.trtstream.chunk_attention(session.new, transposed[None], row, session.rotation(), None, 3)


def test_too_few_counts_of_arrivals_are_refused() -> None:
    session = Session(LAYOUTS["gqa"], WINDOW, 20)
    plan = plan_step(session.layout.positions, [session.step(0)])
    arrivals = torch.zeros(session.layout.heads - 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="arrivals has 5 numbers"):
        torch.ops.trtstream.decode_attention(
            session.new, session.cache(20)[None], plan.rows, plan.rotation, None, arrivals, 3
        )
