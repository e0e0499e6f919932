"""Quantized weights and the product with them: the formats' error, and the kernels, interpreted and compiled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from trtstream.errors import TrtstreamError
from trtstream.plugins import cuda_quantized
from trtstream.plugins.quantized_linear import quantized_linear
from trtstream.plugins.quantized_weight import GROUP, check_columns, dequantize, quantize


def weights(rows: int, columns: int) -> torch.Tensor:
    """Rows of different scales, one of zeros, one of a single value, one far from zero."""
    weight = (
        torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 1, rows)[:, None]
    )
    weight[1], weight[2], weight[3] = 0, 0.3, weight[3] + 5
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int8_is_within_half_a_scale(dtype: torch.dtype) -> None:
    weight = weights(40, 96)
    quantized = quantize(weight, "int8", dtype)
    assert quantized.values.dtype == torch.int8
    error = (dequantize(quantized, torch.float64) - weight).abs()
    assert (error <= 0.5001 * quantized.scales).all()
    assert (error / quantized.scales).max() > 0.4  # the bound is tight: nothing was left out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int4_is_within_half_a_scale_and_its_rounding(dtype: torch.dtype) -> None:
    weight = weights(40, 4 * GROUP)
    quantized = quantize(weight, "int4", dtype)
    assert quantized.values.nbytes == weight.numel() // 2
    error = (dequantize(quantized, torch.float64) - weight).abs().unflatten(1, (-1, GROUP))
    scales, zeros = (x.double()[..., None] for x in (quantized.scales, quantized.zeros))
    rounding = torch.finfo(dtype).eps
    assert (error <= 0.5001 * scales + rounding * (15 * scales + zeros.abs())).all()
    assert (error / scales).max() > 0.4


def test_int4_keeps_what_has_four_bits_already() -> None:
    """Groups on grids of 16 values, as in a 4-bit GGUF checkpoint."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.randint(16, (8, 4, GROUP), generator=generator).float()
    grid[..., 0], grid[..., 1] = 0, 15
    scales, zeros = torch.rand(2, 8, 4, 1, generator=generator)
    weight = (grid * scales - zeros).flatten(1)
    kept = dequantize(quantize(weight, "int4", torch.float32), torch.float32)
    assert (kept - weight).abs().max() < 1e-6 * weight.abs().max()


def test_columns_that_int4_cannot_take_are_refused() -> None:
    check_columns("down", 96, "int8")
    check_columns("down", 128, "int4")
    with pytest.raises(TrtstreamError, match=r"down has 96 columns, and int4 takes multiples of 64; use .* int8"):
        check_columns("down", 96, "int4")


def off_by(
    launch: Callable[..., torch.Tensor], tokens: int, quantization: str, dtype: torch.dtype, splits: int
) -> float:
    """The largest error of a product in units of what rounding may cost.

    70 rows and 1,088 columns: neither is a multiple of a program's block, nor of all programs' together.
    """
    x = torch.randn(tokens, 1088, generator=torch.Generator().manual_seed(1)).to(dtype)
    quantized = quantize(torch.randn(70, 1088, generator=torch.Generator().manual_seed(2)), quantization, dtype)
    found = launch(x, *quantized, splits=splits)
    expected = x.double() @ dequantize(quantized, torch.float64).T
    assert found.dtype == dtype
    return float((found - expected).abs().max() / (4 * torch.finfo(dtype).eps * expected.abs().max()))


# The interpreter has no bfloat16 products (and a graphics processor's are float16's with another rounding).
@pytest.mark.quick("1-int*-1", "17-int4-4")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("tokens", [1, 17, 70])
def test_the_kernels(tokens: int, quantization: str, splits: int, dtype: torch.dtype, interpreter: None) -> None:
    assert off_by(cuda_quantized.launch_quantized_linear, tokens, quantization, dtype, splits) < 1


def test_the_op_runs_the_kernel_under_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(1))
    quantized = quantize(torch.randn(50, 192, generator=torch.Generator().manual_seed(2)), "int4", torch.float32)
    expected = quantized_linear(x, *quantized)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert (quantized_linear(x, *quantized) - expected).abs().max() < 1e-5 * expected.abs().max()


MUTATIONS = {
    "a split left out": ("int8", "tl.static_range(SPLITS)", "tl.static_range(SPLITS - 1)"),
    "splits overlap": ("int8", "tl.num_programs(2) * BLOCK_COLUMNS", "BLOCK_COLUMNS"),
    "sums in one place": ("int8", "tl.program_id(2).to(tl.int64) * num_tokens", "0"),
    "no scale": ("int8", "total * tl.load(scales + rows, mask=is_row, other=0.0)", "total"),
    "the next group's scale": ("int4", "scale_high if side else scale_low", "scale_low if side else scale_high"),
    "the next group's zero": ("int4", "zero_high if side else zero_low", "zero_low if side else zero_high"),
    "halves of a byte swapped": ("int4", "packed >> (4 * side)", "packed >> (4 - 4 * side)"),
    "columns of the wrong pair": ("int4", "byte // GROUP * 2 * GROUP", "byte // GROUP * GROUP"),
}


@pytest.mark.quick("a split*", "the next group's scale")
@pytest.mark.parametrize(("quantization", "right", "wrong"), MUTATIONS.values(), ids=MUTATIONS)
def test_the_comparison_sees_a_mutated_kernel(quantization: str, right: str, wrong: str, mutant: Callable) -> None:
    broken = mutant(cuda_quantized, right, wrong)
    assert not off_by(broken.launch_quantized_linear, 3, quantization, torch.float32, 4) < 100


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import torch
from benchmarks.kernel_resources import _resource_usage
from trtstream.plugins.cuda_quantized import BLOCK_COLUMNS, BLOCK_ROWS, int4_kernel, int8_kernel, num_stages
from trtstream.plugins.quantized_weight import GROUP

BLOCKS = {"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_COLUMNS": BLOCK_COLUMNS, "GROUP": GROUP}
TYPES = {"x": "*bf16", "out": "*fp32", "zeros": "*bf16"}
for kernel, stored in ((int8_kernel, {"values": "*i8", "scales": "*fp32"}),
                       (int4_kernel, {"values": "*u8", "scales": "*bf16"})):
    for block_tokens in (16, 32, 64):
        blocks = {**BLOCKS, "BLOCK_TOKENS": block_tokens}
        types = {**TYPES, **stored}
        signature, constants, aligned = {}, {}, {}
        for i, name in enumerate(kernel.arg_names):
            signature[name] = "constexpr" if name in blocks else types.get(name, "i32")
            if name in blocks:
                constants[i,] = blocks[name]
            elif name != "num_tokens":
                aligned[i,] = [["tt.divisibility", 16]]
        for capability in (80, 90, 120):
            source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
            options = {"num_stages": num_stages(block_tokens, torch.bfloat16)}
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            usage = _resource_usage(compiled.asm["cubin"])
            ahead = compiled.asm["ptx"].count("cp.async.cg")
            print(kernel.__name__, block_tokens, capability, ahead, usage["STACK"], compiled.metadata.shared)
"""


@pytest.mark.process
@pytest.mark.slow
def test_they_compile_for_every_generation() -> None:
    """For Ampere, Hopper and Blackwell, without a GPU: no register is spilled, shared memory is within the smallest of
    the three, and tiles are fetched ahead."""
    result = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert len(lines) == 18
    for *_, ahead, stack, shared in lines:
        assert int(ahead) > 0
        assert int(stack) == 0
        assert int(shared) <= 99 * 1024
