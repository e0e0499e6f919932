"""A TensorRT network to fill."""

from __future__ import annotations

import pytest
import torch

from tests.tensorrt.small_network import SmallNetwork


@pytest.fixture
def network() -> SmallNetwork:
    trt = pytest.importorskip("tensorrt_rtx")
    torch.manual_seed(0)
    return SmallNetwork(trt)
