"""The cpu target's decode step: its pieces against torch, and all of it against the decoder in torch.

Each instruction set that this CPU has is compiled, the portable code, and the code for wider CPUs on this one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.checkpoints import VARIANTS, write_checkpoint
from tests.engines import MAX_SINKS, RING, SIZES, random_tokens
from tests.plugins.mutated_sources import mutated_sources
from trtstream.build.checkpoint import Checkpoint, open_checkpoint
from trtstream.machine import cpu_flags
from trtstream.plugins import cpu_structures as c
from trtstream.plugins.cpu_kernel import FOLDER, LIBRARY, compile_library, geometry, open_library
from trtstream.runtime import cpu as cpu_backend
from trtstream.runtime.cpu import CpuBackend
from trtstream.runtime.cpu_weights import padded_rows
from trtstream.runtime.decoder import ACTIVATIONS, collect_weights
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.settings import BuildConfig

PIECES = Path(__file__).with_name("cpu_pieces.cpp")
# Options of the compiler, and the CPU flags that the code needs.
PATHS = {
    "portable": (["-march=x86-64"], set()),
    "avx2": (["-march=x86-64-v3"], {"avx2", "fma"}),
    "avx512": (["-march=x86-64-v4"], {"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    "avx512-bf16": (["-march=x86-64-v4", "-mavx512bf16"], {"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}),
    "native": (["-march=native"], set()),
    "wide": (["-march=native", "-DLANES=16"], set()),
    "pairs": (["-march=native", "-DBFLOAT16_PAIRS=1"], set()),
    "wide-pairs": (["-march=native", "-DLANES=16", "-DBFLOAT16_PAIRS=1"], set()),
}
PATHS = {name: flags for name, (flags, needed) in PATHS.items() if needed <= cpu_flags()}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GEOMETRY = {"HEAD_DIM": 4, "NUM_HEADS": 2, "NUM_KV_HEADS": 1, "BFLOAT16": 0, "BLOCKS": 0}
STEPS = 3 * (MAX_SINKS + RING)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    @cache
    def pieces(path: str) -> ctypes.CDLL:
        output = tmp_path_factory.mktemp("pieces") / "pieces.so"
        quickly = [] if path == "native" else ["-O1"]  # whole steps are compiled for each path as engines are
        compile_library(PIECES, GEOMETRY, output, *PATHS[path], *quickly, f"-I{FOLDER}")
        return ctypes.CDLL(str(output))

    return pieces


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def address(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def matrix(weight: torch.Tensor, bias: torch.Tensor | None = None) -> c.Matrix:
    """The structure of a weight with padded rows."""
    name = str(weight.dtype).removeprefix("torch.")
    row_bytes = weight.stride(0) * weight.element_size()
    bias_address = None if bias is None else bias.data_ptr()
    return c.Matrix(weight.data_ptr(), bias_address, len(weight), weight.stride(0), row_bytes, c.FORMATS[name])


@pytest.mark.quick("1-float32-native", "2-bfloat16-native", "1-*-portable")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [1, 2])
def test_products(path: str, dtype: str, parts: int, pieces: Callable[[str], ctypes.CDLL]) -> None:
    """Rows and columns that fill tiles, streams and vectors, and that do not; every number of tokens up to 9."""
    for rows, columns in ((64, 64), (1, 32), (40, 40), (150, 96), (7, 23), (288, 160)):
        weight = padded_rows(random(parts * rows, columns).to(DTYPES[dtype]))
        bias = random(parts * rows, seed=1)
        for batch, threads in ((1, 1), (1, 3), (2, 1), (3, 2), (4, 1), (8, 2), (9, 1)):
            x = padded_rows(random(batch, columns, seed=2))
            out = torch.full((batch, parts * rows), torch.nan)
            packed, sums = torch.zeros(batch * (columns + 64)), torch.zeros(4 * batch * 16)
            structure = matrix(weight, bias)
            for index in range(threads):  # each writes its own rows
                pieces(path).pieces_product(
                    ctypes.byref(structure), ctypes.c_int64(parts), address(x), ctypes.c_int64(batch), address(packed),
                    address(sums), ctypes.c_int64(index), ctypes.c_int64(threads), address(out),
                )  # fmt: skip
            expected = x @ weight.float().T + bias
            # Activations become bfloat16 where the CPU multiplies pairs: eight bits of each of the products.
            tolerance = 2e-6 if dtype == "float32" or ("pairs" not in path and "bf16" not in path) else 4e-3
            assert (out - expected).abs().max() < tolerance * columns**0.5 * 8, (rows, columns, batch, threads)


@pytest.mark.quick("*-native", "23-portable")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [64, 23, 576])
def test_norms(path: str, size: int, pieces: Callable[[str], ctypes.CDLL]) -> None:
    x, weight, bias, out = 3 * random(size) + 2, random(size, seed=1), random(size, seed=2), torch.empty(size)
    arguments = ctypes.c_double(1e-5), address(x), ctypes.c_int64(size), address(out)
    norm = c.Norm(weight.data_ptr(), bias.data_ptr())
    pieces(path).pieces_rms_norm(ctypes.byref(norm), *arguments)
    assert torch.allclose(out, F.rms_norm(x, (size,), weight, 1e-5), atol=1e-5)
    pieces(path).pieces_layer_norm(ctypes.byref(norm), *arguments)
    assert torch.allclose(out, F.layer_norm(x, (size,), weight, bias, 1e-5), atol=1e-5)


@pytest.mark.quick("*-native", "silu-portable")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(path: str, activation: str, pieces: Callable[[str], ctypes.CDLL]) -> None:
    x = torch.cat((torch.linspace(-12, 12, 997), torch.tensor([0.0, -100.0, 100.0])))
    expected = ACTIVATIONS[activation](x)
    pieces(path).pieces_activate(ctypes.c_int64(c.ACTIVATIONS.index(activation)), address(x), ctypes.c_int64(len(x)))
    assert (x - expected).abs().max() < 2e-5


@pytest.mark.quick("native", "portable")
@pytest.mark.parametrize("path", PATHS)
def test_bfloat16_as_torch_rounds_it(path: str, pieces: Callable[[str], ctypes.CDLL]) -> None:
    ties = torch.tensor([0x3F808000, 0x3F818000, 0x3F807FFF, 0x7F7FFFFF, 1], dtype=torch.int32).view(torch.float32)
    x = torch.cat((random(1000), ties, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])))
    out = torch.empty(len(x), dtype=torch.bfloat16)
    pieces(path).pieces_narrow(address(x), ctypes.c_int64(len(x)), address(out))
    assert torch.equal(out[:-1].view(torch.int16), x[:-1].bfloat16().view(torch.int16))
    assert out[-1].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_embedding_is_a_row(dtype: str, pieces: Callable[[str], ctypes.CDLL]) -> None:
    weight = padded_rows(random(5, 40).to(DTYPES[dtype]))
    structure, out = matrix(weight), torch.empty(40)
    pieces("native").pieces_read_row(ctypes.byref(structure), ctypes.c_int64(3), ctypes.c_int64(40), address(out))
    assert torch.equal(out, weight[3].float())


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_wait_for_each_other(threads: int, pieces: Callable[[str], ctypes.CDLL]) -> None:
    count = pieces("native").pieces_rounds
    count.restype = ctypes.c_int64
    assert count(ctypes.c_int64(threads), ctypes.c_int64(500)) == 500


class Comparison:
    """A variant's decode step in a library and in torch."""

    def __init__(self, variant: str, folder: Path, dtype: str = "float32", **sizes: int) -> None:
        self.checkpoint: Checkpoint = open_checkpoint(write_checkpoint(folder / "checkpoint", variant))
        self.model = self.checkpoint.model
        self.build = BuildConfig(**{**SIZES, "dtype": dtype, **sizes})
        self.names = set(self.checkpoint.tensor_names())
        self.expected = cache(lambda steps: self.steps_of(self.engine(None, "float32"), steps))

    def engine(self, library: Path | None, dtype: str) -> StreamingEngine:
        build = replace(self.build, dtype=dtype)
        weights = collect_weights(
            self.model,
            self.names,
            lambda name: self.checkpoint.tensor(name).to(DTYPES[self.build.dtype]).to(DTYPES[dtype]),
        )
        opened = None if library is None else open_library(library, self.model, build)
        return StreamingEngine(self.model, build, CpuBackend(self.model, build, weights, opened))

    def compile(self, output: Path, *flags: str, folder: Path = FOLDER) -> Path:
        compile_library(folder / LIBRARY.name, geometry(self.model, self.build), output, *flags)
        return output

    def worst_error(self, library: Path, threads: int = 1, steps: int = STEPS) -> float:
        """The largest difference of a logit, in standard deviations, between ``library`` and float32 in torch.

        Three sessions of different ages, of which the youngest begins with its first token; and a fourth whose prompt
        is fed in chunks next to some of their steps.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found = self.steps_of(self.engine(library, self.build.dtype), steps)
        finally:
            torch.set_num_threads(before)
        errors = [(a - b).abs().max() / b.std() for a, b in zip(found, self.expected(steps), strict=True)]
        return float(torch.stack(errors).nan_to_num(torch.inf).max())

    @staticmethod
    def steps_of(engine: StreamingEngine, steps: int) -> list[torch.Tensor]:
        for lane, length in ((1, 3), (4, 30)):
            engine.prefill(lane, random_tokens(length, seed=lane))
        logits = []
        for t in range(steps):
            lanes = [4, 0, 1] if t % 2 else [0]
            chunks = {2: random_tokens(9, seed=t)} if t % 5 == 3 else {}
            logits.append(engine.decode_and_prefill(lanes, random_tokens(len(lanes), seed=100 + t), chunks))
        return logits


Compare = Callable[..., Comparison]


def comparisons(kind: type[Comparison], folders: pytest.TempPathFactory) -> Compare:
    """Gives the same comparison for all tests of a variant: what torch computes is computed once."""

    @cache
    def compare(variant: str, dtype: str = "float32") -> Comparison:
        return kind(variant, folders.mktemp(variant), dtype)

    return compare


@pytest.fixture(scope="module")
def compare(tmp_path_factory: pytest.TempPathFactory) -> Compare:
    return comparisons(Comparison, tmp_path_factory)


@pytest.mark.quick("llama-gqa-portable", "falcon-rw-native")
@pytest.mark.parametrize("path", [path for path in PATHS if "pairs" not in path and "bf16" not in path])
@pytest.mark.parametrize("variant", ["llama-gqa", "falcon-rw"])
def test_a_step_of_each_instruction_set(path: str, variant: str, compare: Compare, tmp_path: Path) -> None:
    """In float32; pairs are for bfloat16."""
    comparison = compare(variant)
    assert comparison.worst_error(comparison.compile(tmp_path / "step.so", *PATHS[path])) < 1e-4


@pytest.mark.parametrize(("threads", "variant"), [(2, "falcon-7b"), (5, "llama-gqa")])
def test_threads_share_a_step(threads: int, variant: str, compare: Compare, tmp_path: Path) -> None:
    """A few steps: threads that spin for each other are slow on cores that others use."""
    comparison = compare(variant)
    assert comparison.worst_error(comparison.compile(tmp_path / "step.so"), threads, steps=8) < 1e-4


@pytest.mark.quick("native")
@pytest.mark.parametrize("path", PATHS)
def test_a_step_in_bfloat16(path: str, compare: Compare, tmp_path: Path) -> None:
    """The cache is rounded, and with pairs all activations that are multiplied."""
    comparison = compare("llama-gqa", "bfloat16")
    assert comparison.worst_error(comparison.compile(tmp_path / "step.so", *PATHS[path])) < 0.15


@pytest.mark.quick("llama-gqa", "falcon-40b")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_is_one_call(variant: str, compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every variant, with chunks of prompts and without: nothing of the decoder in torch computes in a step."""
    comparison = compare(variant)
    engine = comparison.engine(comparison.compile(tmp_path / "step.so"), "float32")
    monkeypatch.setattr(cpu_backend, "decode_layers", None)
    monkeypatch.setattr(cpu_backend, "logits", None)
    step, calls = engine.backend._step, []
    library = step._library

    class Counting:
        def __getattr__(self, name: str) -> Callable[..., None]:
            calls.append(name)
            return getattr(library, name)

    step._library = Counting()
    for t in range(3):
        engine.decode([0, 2], random_tokens(2, seed=t))
    engine.prefill(1, random_tokens(9))
    engine.decode_and_prefill([0, 2], [1, 2], {1: random_tokens(7), 3: random_tokens(20)})
    assert calls == ["decode_step"] * 5


MERGES_THREADS = "value[d] * old_weight + weight"
MUTATIONS = [
    ("llama-gqa", "attention.h", "angle + 2 * kHalf, angle + 3 * kHalf", "angle, angle + kHalf"),
    ("llama-gqa", "attention.h", "{oldest + width, width", "{oldest + width + 1, width"),
    ("llama-gqa", "attention.h", "max_sinks + row.newest + 1, false", "max_sinks + row.newest, false"),
    ("llama-gqa", "attention.h", "partial.sum *= rescale", "partial.sum *= 1"),
    ("llama-gqa", "attention.h", MERGES_THREADS, "value[d] + weight"),
    ("llama-gqa", "attention.h", "second * cos[i] + first * sin[i]", "second * cos[i] - first * sin[i]"),
    ("falcon-rw", "attention.h", "row.cache_position - slot", "row.cache_position - slot + 1"),
    ("falcon-rw", "attention.h", "age < 0 ? age + sessions.ring() : age", "age"),
    ("falcon-rw", "norm.h", "out[i] = (x[i] - mean) * scale", "out[i] = x[i] * scale"),
    ("falcon-rw", "norm.h", " + norm.bias[i]", ""),
    ("falcon-rw", "mlp.h", "0.70710678f", "0.6f"),
    ("llama-bias", "matvec.h", "m.bias[first_rows[s] + i]", "m.bias[first_rows[0] + i]"),
    ("llama-gqa", "matvec.h", "s % Parts * rows", "0 * rows"),
    ("llama-gqa", "matvec.h", "b += 2;", "b += 1;"),
    ("falcon-7b", "formats.h", "in_register(sums[r][b] + w[r] * values)", "in_register(w[r] * values)"),
    ("falcon-40b", "step.cpp", "if (!model_.is_shared_norm) normalize", "if (model_.is_shared_norm) normalize"),
    ("falcon-7b", "step.cpp", "if (!model_.is_parallel) {", "{"),
    ("qwen3", "step.cpp", "if (layer.q_norm.weight) normalize_heads(layer);", ""),
    ("qwen3", "step.cpp", "head < kHeads ? layer.q_norm : layer.k_norm", "layer.q_norm"),
    ("mpt-7b", "step.cpp", "if (model_.clip_qkv > 0)", "if (model_.clip_qkv < 0)"),
    ("llama-gqa", "step.cpp", "cache + i * sessions_.layer_size()", "cache"),
    ("llama-gqa", "step.cpp", "normalize(model_.norm, wanted[i], i)", "normalize(model_.norm, i, i)"),
]


@pytest.mark.quick(
    "llama-gqa-attention.h-partial*",
    "falcon-rw-*norm.bias*",
    "falcon-rw-mlp.h*",
    "llama-bias-*",
    "falcon-7b-formats.h*",
    "qwen3-step.cpp-if*",
)
@pytest.mark.parametrize(("variant", "file", "right", "wrong"), MUTATIONS)
def test_the_comparison_sees_a_mutated_step(
    variant: str, file: str, right: str, wrong: str, compare: Compare, tmp_path: Path
) -> None:
    """Compiled quickly: what is wrong stays wrong."""
    sources = mutated_sources(tmp_path, file, right, wrong)
    comparison = compare(variant)
    library = comparison.compile(tmp_path / "step.so", "-march=native", "-O0", folder=sources)
    threads = 2 if right == MERGES_THREADS else 1
    assert not comparison.worst_error(library, threads) < 1e-3
