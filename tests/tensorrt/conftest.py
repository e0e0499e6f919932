"""A TensorRT network to fill."""

from __future__ import annotations

import pytest
import tensorrt_rtx as trt
import torch

from tests.tensorrt.small_network import SmallNetwork


@pytest.fixture
def network() -> SmallNetwork:
    torch.manual_seed(0)
    return SmallNetwork(trt)
