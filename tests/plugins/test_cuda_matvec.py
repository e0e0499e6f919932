"""Products of few tokens with norm, activation and residual in one kernel, interpreted, against torch's operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from trtstream.plugins import cuda_matvec
from trtstream.plugins.cuda_matvec import matvec, matvec_constants
from trtstream.runtime.decoder import ACTIVATIONS

EPS = 0.1  # large, so that a missing one shows


TILES = {"INPUTS": 32, "NORM_INPUTS": 64}
INPUTS, OUTPUTS = 150, 37


@dataclass(frozen=True)
class Case:
    """A product with what surrounds it, of which no size is a multiple of a tile."""

    tokens: int
    norm: str | None = None
    activation: str | None = None
    gated: bool = False
    bias: bool = False
    residual: bool = False


CASES = {
    "rms": Case(1, "rms"),
    "rms-8": Case(8, "rms"),
    "layer": Case(1, "layer"),
    "layer-bias-3": Case(3, "layer", bias=True),
    "swiglu": Case(1, "rms", "silu", gated=True),
    "swiglu-bias-5": Case(5, "rms", "silu", gated=True, bias=True),
    "gelu": Case(1, "layer", "gelu", bias=True),
    "gelu-tanh-2": Case(2, activation="gelu_pytorch_tanh"),
    "relu": Case(1, activation="relu"),
    "residual": Case(1, residual=True),
    "residual-bias-7": Case(7, residual=True, bias=True),
    "residual-11": Case(11, "rms", residual=True),
}
product = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def worst_error(case: Case, kernel: Callable[..., torch.Tensor], dtype: torch.dtype = torch.float32) -> float:
    """The largest difference from the definition in float64, over the outputs' scale."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    rows = OUTPUTS * (2 if case.gated else 1)
    # A token of which the mean is not 0, and of which LayerNorm needs two passes.
    x = random(case.tokens, INPUTS) + torch.arange(1, case.tokens + 1)[:, None].to(dtype)
    weight = random(rows, INPUTS) / INPUTS**0.5
    bias = random(rows) if case.bias else None
    norm_weight = random(INPUTS) if case.norm else None
    norm_bias = random(INPUTS) if case.norm == "layer" and case.bias else None
    residual = random(case.tokens, OUTPUTS) if case.residual else None
    found = kernel(
        x, weight, bias, norm_weight=norm_weight, norm_bias=norm_bias, norm_eps=EPS, layer_norm=case.norm == "layer",
        activation=case.activation, gated=case.gated, residual=residual,
        **TILES, **({"OUTPUTS": 8} if case.tokens == 1 else {}),
    )  # fmt: skip
    assert found.dtype == dtype

    exact = [None if part is None else part.double() for part in (x, weight, bias, norm_weight, norm_bias, residual)]
    x, weight, bias, norm_weight, norm_bias, residual = exact
    if case.norm == "rms":
        x = F.rms_norm(x, x.shape[-1:], norm_weight, EPS)
    elif case.norm == "layer":
        x = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, EPS)
    expected = F.linear(x, weight, bias)
    gate, up = expected.chunk(2, dim=-1) if case.gated else (expected, torch.ones(()))
    if case.activation is not None:
        gate = ACTIVATIONS[case.activation](gate)
    expected = gate * up if residual is None else gate * up + residual
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.quick("swiglu", "layer-bias-3", "residual-bias-7", "gelu")
@product
def test_a_product_equals_torchs_operators(case: Case, interpreter: None) -> None:
    assert worst_error(case, matvec) < 3e-6


@pytest.mark.quick("dtype1-rms-8")
@pytest.mark.parametrize("case", [CASES["rms"], CASES["rms-8"], CASES["swiglu"]], ids=["rms", "rms-8", "swiglu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_product_in_16_bits(case: Case, dtype: torch.dtype, interpreter: None) -> None:
    assert worst_error(case, matvec, dtype) < 2 * torch.finfo(dtype).eps


def test_no_number_is_lost_where_a_token_does_not_exist(interpreter: None) -> None:
    """Rows of the tile beyond the tokens are not read: what lies behind the tokens in memory changes nothing."""
    memory = torch.full((8, 72), torch.nan)
    memory[:2] = torch.randn(2, 72, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(16, 72, generator=torch.Generator().manual_seed(1))
    found = matvec(memory[:2], weight, norm_weight=torch.ones(72), norm_eps=EPS)
    assert (found - F.linear(F.rms_norm(memory[:2], (72,), eps=EPS), weight)).abs().max() < 1e-5


MUTATIONS = {
    "no epsilon": ("squares / num_inputs + eps", "squares / num_inputs"),
    "the mean stays": ("(values - mean) * inverse", "values * inverse"),
    "the variance of what has a mean": ("(values - mean) * (values - mean)", "values * values"),
    "no norm bias": ("values += tl.load(norm_bias", "values += 0 * tl.load(norm_bias"),
    "the last columns left out": ("tl.range(0, num_inputs, INPUTS", "tl.range(0, num_inputs - INPUTS, INPUTS"),
    "what lies behind the columns": ("is_column = column < num_inputs", "is_column = column < num_inputs + 1"),
    "no bias of up": ("up += tl.load(bias + num_outputs", "up += 0 * tl.load(bias + num_outputs"),
    "gate and up in another order": ("total = activate(total, ACTIVATION)", "up = activate(up, ACTIVATION)"),
    "no residual": ("total += tl.load(residual", "total += 0 * tl.load(residual"),
    "another token's residual": ("residual + place", "residual + output"),
    "gelu without erf's scale": ("0.7071067811865476", "1.0"),
}


@pytest.mark.quick("no residual", "gate and up*")
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_the_comparison_sees_a_mutated_kernel(mutation: tuple[str, str], mutant: Callable) -> None:
    broken = mutant(cuda_matvec, *mutation)
    assert not all(worst_error(case, broken.matvec) < 1e-4 for case in CASES.values())


def test_a_few_outputs_are_shared_out_to_fill_the_gpu() -> None:
    def programs(outputs: int, **others: bool) -> float:
        return outputs / matvec_constants(1, outputs, gated=others.get("gated", False), dtype=torch.float16)["OUTPUTS"]

    assert programs(576) == 288
    assert programs(4096) == 256
    assert programs(11008, gated=True) == 11008 / 8
