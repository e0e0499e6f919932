"""Weights in blocks: their formats against gguf's own code, and the cpu library's products with them against torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from tests.plugins import test_cpu_step
from tests.plugins.mutated_sources import mutated_sources
from tests.plugins.test_cpu_step import PATHS, address, random
from trtstream.plugins import cpu_structures as c
from trtstream.plugins.block_weight import BLOCK_FORMATS, BlockWeight, dequantize_blocks, quantize_blocks
from trtstream.plugins.cpu_kernel import FOLDER, compile_library
from trtstream.runtime.cpu_step import matrix
from trtstream.runtime.decoder import Projection

PRODUCTS = Path(__file__).with_name("cpu_products.cpp")
GEOMETRY = {**test_cpu_step.GEOMETRY, "BLOCKS": 1}
TOLERANCE = 1e-5  # of the largest sum of absolute products
Compile = Callable[[str], ctypes.CDLL]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    @cache
    def library(path: str) -> ctypes.CDLL:
        output = tmp_path_factory.mktemp("products") / "products.so"
        quickly = [] if path == "native" else ["-O1"]
        compile_library(PRODUCTS, GEOMETRY, output, *PATHS[path], *quickly, f"-I{FOLDER}")
        return ctypes.CDLL(str(output))

    return library


def gguf_blocks(weight: torch.Tensor, name: str) -> torch.Tensor:
    return torch.from_numpy(quantize(weight.numpy(), GGMLQuantizationType[name]).view(np.uint8))


def in_tiles(library: ctypes.CDLL, weight: BlockWeight) -> BlockWeight:
    """As `read_cpu_weights` has it, with other bytes behind it."""
    rows, row_bytes = weight.blocks.shape
    tile = ctypes.c_int64.in_dll(library, "rows_of_a_tile").value
    tiles = torch.full((-(-rows // tile) * tile, row_bytes), 0x55, dtype=torch.uint8)
    pointers = ctypes.c_void_p(weight.blocks.data_ptr()), ctypes.c_void_p(tiles.data_ptr())
    library.lay_out(
        ctypes.c_int64(c.FORMATS[weight.format]), pointers[0], ctypes.c_int64(rows), ctypes.c_int64(row_bytes),
        pointers[1],
    )  # fmt: skip
    return BlockWeight(tiles[:rows], weight.format)


def whole_numbers(batch: int, columns: int) -> torch.Tensor:
    """Activations that 16 bits hold exactly, with another scale in each block, some at their limits, one block zero."""
    generator = torch.Generator().manual_seed(batch)
    x = torch.randint(-32767, 32768, (batch, columns // 32, 32), generator=generator).float()
    x[:, :, 0] = 32767
    x[0, -1] = 32767 * torch.where(torch.arange(32) % 3 == 0, -1.0, 1.0)
    x *= 2.0 ** torch.randint(-9, 3, (batch, columns // 32, 1), generator=generator)
    x[-1, 0] = 0
    return x.flatten(1)


def extreme(weight: torch.Tensor, name: str) -> torch.Tensor:
    """The blocks of a weight, in some of which integers are as large as they can be, and scales tiny or negative."""
    blocks = gguf_blocks(weight, name)
    size = BLOCK_FORMATS[name].block_bytes
    each = blocks.view(len(blocks), -1, size)
    each[0, 0, -32 if name == "Q8_0" else -16 :] = 0x80 if name == "Q8_0" else 0xFF
    each[-1, -1, -32 if name == "Q8_0" else -16 :] = 0x7F if name == "Q8_0" else 0xFF
    each[len(blocks) // 2, 0, :2] = torch.tensor([0x34, 0x80], dtype=torch.uint8)  # below the smallest normal float16
    each[len(blocks) // 3, -1, 1] ^= 0x80
    return blocks


def product(
    library: ctypes.CDLL, weight: BlockWeight, bias: torch.Tensor | None, x: torch.Tensor, threads: int = 1
) -> torch.Tensor:
    """x [tokens, columns] times the weight, as a step computes it."""
    structure, batch = matrix(Projection(in_tiles(library, weight), bias), kept := []), len(x)
    out = torch.full((batch, structure.rows), torch.nan)
    packed, sums = torch.zeros(batch * x.shape[1]), torch.zeros(4 * batch * 16)
    for index in range(threads):  # each writes its own rows
        library.pieces_product(
            ctypes.byref(structure), ctypes.c_int64(1), address(x), ctypes.c_int64(batch), address(packed),
            address(sums), ctypes.c_int64(index), ctypes.c_int64(threads), address(out),
        )  # fmt: skip
    assert kept
    return out


def panel_product(
    library: ctypes.CDLL, weight: BlockWeight, bias: torch.Tensor | None, x: torch.Tensor, threads: int = 1
) -> torch.Tensor:
    """x [tokens, columns] times the weight, as a chunk computes it."""
    structure = matrix(Projection(in_tiles(library, weight), bias), kept := [])
    out = torch.full((len(x), structure.rows), torch.nan)
    library.pieces_panel_product(
        ctypes.byref(structure), address(x), ctypes.c_int64(len(x)), ctypes.c_int64(threads), False, address(out)
    )
    assert kept
    return out


def worst_product(library: ctypes.CDLL, name: str, threads: int = 1) -> float:
    """The largest error of a product, relative to the sum of its absolute terms.

    Of rows and columns that fill tiles, streams and vectors, and that do not; of few tokens, and in chunks.
    """
    worst = 0.0
    for rows, columns in ((64, 64), (1, 32), (40, 96), (150, 160), (7, 32), (288, 32), (36, 288)):
        weight, bias = BlockWeight(extreme(random(rows, columns), name), name), random(rows, seed=1)
        values = dequantize_blocks(weight).double()
        for multiply, batch in ((product, 1), (product, 2), (product, 4), (product, 7), (panel_product, 70)):
            x = whole_numbers(batch, columns)
            expected = x.double() @ values.T + bias
            scale = x.double().abs() @ values.abs().T + bias.abs()
            error = (multiply(library, weight, bias, x, threads) - expected).abs() / scale
            worst = max(worst, float(error.nan_to_num(torch.inf).max()))
    return worst


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_values_are_those_that_gguf_reads(name: str) -> None:
    weight = random(5, 96)
    theirs = gguf_blocks(weight, name)
    assert theirs.shape[1] == BLOCK_FORMATS[name].row_bytes(96)
    expected = dequantize(theirs.numpy(), GGMLQuantizationType[name])
    assert torch.equal(dequantize_blocks(BlockWeight(theirs, name)), torch.from_numpy(expected))


@pytest.mark.parametrize(("name", "steps"), [("Q8_0", 127), ("Q4_1", 7.5)])
def test_rounding_to_blocks(name: str, steps: float) -> None:
    """As good as gguf's own, up to half a step; whatever the columns, and of zeros and tiny values too."""
    for weight in (random(6, 64), random(3, 40), torch.zeros(2, 32), torch.full((2, 32), -3e-9)):
        blocks = quantize_blocks(weight, name)
        values = torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[name]))
        assert torch.equal(dequantize_blocks(BlockWeight(blocks, name)), values)
        padded = torch.zeros_like(values)
        padded[:, : weight.shape[1]] = weight
        groups = padded.unflatten(1, (-1, 32))
        largest = groups.abs().amax(dim=2, keepdim=True)
        bound = largest * (0.5 / steps + 2**-10) + 2**-24
        assert ((values.unflatten(1, (-1, 32)) - groups).abs() <= bound).all()


@pytest.mark.quick("native-*", "portable-Q8_0")
@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("path", PATHS)
def test_products(path: str, name: str, library: Compile) -> None:
    assert worst_product(library(path), name) < TOLERANCE


def test_threads_share_a_product(library: Compile) -> None:
    for threads in (2, 3):
        assert worst_product(library("native"), "Q4_1", threads) < TOLERANCE


@pytest.mark.quick("native", "portable")
@pytest.mark.parametrize("path", PATHS)
def test_activations_are_rounded_to_the_nearest_of_16_bits(path: str, library: Compile) -> None:
    """Seen through a weight that is the identity: integers 1 in a block of a scale of 1."""
    x = torch.cat((5 * random(3, 32), 1e-3 * random(1, 32), torch.zeros(1, 32), torch.full((1, 32), 1e-38)))
    identity = torch.zeros(32, 34, dtype=torch.uint8)
    identity[:, 1] = 0x3C  # float16's 1
    identity[:, 2:] = torch.eye(32, dtype=torch.uint8)
    found = product(library(path), BlockWeight(identity, "Q8_0"), None, x)
    scales = x.abs().amax(dim=1, keepdim=True) / 32767
    assert ((found - x).abs() <= 0.501 * scales + 1e-30).all()
    assert torch.equal(found[4], torch.zeros(32))


@pytest.mark.quick("native-*", "portable-Q8_0")
@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("path", PATHS)
def test_an_embedding_is_a_row(path: str, name: str, library: Compile) -> None:
    weight = BlockWeight(extreme(random(37, 96), name), name)
    tiles = in_tiles(library(path), weight)
    structure = matrix(Projection(tiles, None), [])
    for row in (36, 0, 12, 18):
        out = torch.empty(90)
        library(path).pieces_read_row(ctypes.byref(structure), ctypes.c_int64(row), ctypes.c_int64(90), address(out))
        assert torch.allclose(out, dequantize_blocks(weight)[row, :90], rtol=1e-6, atol=1e-9)


MUTATIONS = [
    ("blocks.h", "i * kWord + 2 * pair", "i * kWord", "Q4_1"),
    ("blocks.h", "* block.scaled_sum", "* block.scale", "Q4_1"),
    ("blocks.h", "-kZero * at", "-(kZero + 1) * at", "Q4_0"),
    ("blocks.h", "sum += values[i]", "sum = values[i]", "Q8_0"),
    ("blocks.h", "scale * block.scale * floats", "scale * at(x).scale * floats", "Q8_0"),
    ("blocks.h", "uint8_t(integers[column] + kZero)", "uint8_t(integers[column])", "Q8_0"),
    ("blocks.h", "words >> (pair * Bits)", "words >> Bits", "Q4_0"),
    ("blocks.h", "- float(kZero)) + minimum", "- float(kZero))", "Q4_1"),
    ("blocks.h", "put(both >> 16)", "put(both & 0xffffu)", "Q8_0"),
    ("matvec.h", "/ kPieces / tile * tile", "/ kPieces", "Q4_1"),
    ("panels.h", "r - r % rows_together", "r", "Q4_0"),
]


@pytest.mark.quick("blocks.h-sum*", "matvec.h*")
@pytest.mark.parametrize(("file", "right", "wrong", "name"), MUTATIONS)
def test_products_see_a_mutated_format(file: str, right: str, wrong: str, name: str, tmp_path: Path) -> None:
    sources = mutated_sources(tmp_path, file, right, wrong)
    compile_library(PRODUCTS, GEOMETRY, tmp_path / "products.so", "-march=native", "-O0", f"-I{sources}")
    assert not worst_product(ctypes.CDLL(str(tmp_path / "products.so")), name) < 100 * TOLERANCE
