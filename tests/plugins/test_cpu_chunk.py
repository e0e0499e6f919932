"""The cpu target's chunks of prompts: their pieces against torch, and all of a chunk against the decoder in torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.checkpoints import VARIANTS
from tests.engines import RING, random_tokens
from tests.plugins.mutated_sources import mutated_sources
from tests.plugins.test_cpu_step import (
    DTYPES,
    PATHS,
    Compare,
    Comparison,
    address,
    comparisons,
    matrix,
    pieces,
    random,
)
from trtstream.plugins import cpu_structures as c
from trtstream.runtime import cpu as cpu_backend
from trtstream.runtime.cpu_weights import padded_rows
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.streaming_engine import StreamingEngine

__all__ = ["pieces"]  # a fixture
LONGEST = 70
Pieces = Callable[[str], ctypes.CDLL]


@pytest.mark.quick("float32-native", "bfloat16-portable")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(path: str, dtype: str, pieces: Pieces) -> None:
    """Rows, columns and tokens that fill tiles, blocks and panels, and that do not; alone and added."""
    for rows, columns in ((64, 64), (1, 32), (40, 40), (150, 544), (7, 23), (288, 300)):
        weight, bias = padded_rows(random(rows, columns).to(DTYPES[dtype])), random(rows, seed=1)
        structure = matrix(weight, bias)
        for tokens, threads, add in ((1, 1, False), (9, 3, True), (24, 1, True), (41, 2, False), (100, 2, True)):
            x, before = padded_rows(random(tokens, columns, seed=2)), random(tokens, rows, seed=3)
            out = before.clone()
            pieces(path).pieces_panel_product(
                ctypes.byref(structure), address(x), ctypes.c_int64(tokens), ctypes.c_int64(threads), add, address(out)
            )
            expected = x @ weight.float().T + bias + (before if add else 0)
            assert (out - expected).abs().max() < 2e-5 * columns**0.5, (rows, columns, tokens, threads, add)


@pytest.mark.quick("native", "portable")
@pytest.mark.parametrize("path", PATHS)
def test_norms(path: str, pieces: Pieces) -> None:
    size, library = 23, pieces(path)
    panel = ctypes.c_int64.in_dll(library, "tokens_of_a_panel").value
    x, weight, bias, out = (
        3 * random(size, panel) + 2,
        random(size, seed=1),
        random(size, seed=2),
        torch.empty(size, panel),
    )
    lanes = panel // 3
    arguments = ctypes.c_double(1e-5), address(x), ctypes.c_int64(size), address(out)
    norm = c.Norm(weight.data_ptr(), bias.data_ptr())
    library.pieces_rms_norm_of_panel(ctypes.byref(norm), *arguments)
    assert torch.allclose(out.T[:lanes], F.rms_norm(x.T, (size,), weight, 1e-5)[:lanes], atol=1e-5)
    library.pieces_layer_norm_of_panel(ctypes.byref(norm), *arguments)
    assert torch.allclose(out.T[:lanes], F.layer_norm(x.T, (size,), weight, bias, 1e-5)[:lanes], atol=1e-5)


class ChunkComparison(Comparison):
    """Whole chunks in a library, however short, and in torch."""

    def __init__(self, variant: str, folder: Path, dtype: str = "float32") -> None:
        super().__init__(variant, folder, dtype, max_num_tokens=LONGEST)

    def engine(self, library: Path | None, dtype: str) -> StreamingEngine:
        engine = super().engine(library, dtype)
        if library is not None:
            engine.backend._step.max_tokens = 1
            engine.backend._chunks_in_torch = False
        return engine

    @staticmethod
    def steps_of(engine: StreamingEngine, steps: int) -> list[torch.Tensor]:
        """Chunks that begin among sinks, end anywhere in a panel, divide the ring or not, and are larger than it.

        Then a session that was rebuilt, so that its ring begins with a late token. ``steps`` of each.
        """
        scores, logits = [], []
        for i in range(steps):
            for length in (3, 2, 30, RING, 7, LONGEST, 9, 24):
                scores.append(engine.score(1, random_tokens(length, seed=100 * i + length)))
        engine.import_state(3, SessionState(4, 500, random_tokens(4 + 9, seed=1)))
        for length in (5, 33, 2, LONGEST):
            scores.append(engine.score(3, random_tokens(length, seed=length)))
            logits += [engine.decode([lane], random_tokens(1, seed=length)) for lane in (1, 3)]
        together = torch.cat(scores)
        return [together[~together.isnan()], *logits]


@pytest.fixture(scope="module")
def compare(tmp_path_factory: pytest.TempPathFactory) -> Compare:
    return comparisons(ChunkComparison, tmp_path_factory)


@pytest.mark.quick("llama-gqa-portable")
@pytest.mark.parametrize("path", [path for path in PATHS if "pairs" not in path and "bf16" not in path])
@pytest.mark.parametrize("variant", ["llama-gqa", "falcon-rw", "qwen3"])
def test_a_chunk_of_each_instruction_set(path: str, variant: str, compare: Compare, tmp_path: Path) -> None:
    comparison = compare(variant)
    assert comparison.worst_error(comparison.compile(tmp_path / "step.so", *PATHS[path]), steps=1) < 1e-4


@pytest.mark.quick("llama-gqa", "falcon-40b")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_chunk_is_one_call(variant: str, compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every variant, on two threads; nothing of the decoder in torch computes in it."""
    comparison = compare(variant)
    comparison.expected(1)
    monkeypatch.setattr(cpu_backend, "decode_layers", None)
    assert comparison.worst_error(comparison.compile(tmp_path / "step.so"), threads=2, steps=1) < 1e-4


def test_a_chunk_in_bfloat16(compare: Compare, tmp_path: Path) -> None:
    """The cache is rounded, and the chunk's own keys and values as the cache would have them."""
    comparison = compare("llama-gqa", "bfloat16")
    library = comparison.compile(tmp_path / "step.so", "-march=native")
    assert comparison.worst_error(library, steps=1) < 0.15
    first, second = (comparison.engine(library, "bfloat16") for _ in range(2))
    for engine, size in ((first, LONGEST), (second, 5)):
        for i in range(0, 2 * LONGEST, size):
            engine.score(1, random_tokens(2 * LONGEST)[i : i + size])
    assert torch.allclose(first.backend.session_cache(1).float(), second.backend.session_cache(1).float(), atol=0.04)


MUTATIONS = [
    ("llama-gqa", "chunk_attention.h", "turn * 2 * kHalf + d", "d"),
    ("llama-gqa", "chunk_attention.h", "(first.ring_count == 0)", "0"),
    ("llama-gqa", "chunk_attention.h", "place < 0 ? place + ring : place", "other"),
    ("llama-gqa", "chunk_attention.h", "first[i] <= number", "first[i] < number"),
    ("llama-gqa", "chunk_attention.h", "number < end[i]", "number <= end[i]"),
    ("llama-gqa", "chunk_attention.h", "from = std::min(from, behind - row.ring_count)", "from = first[i]"),
    ("llama-gqa", "chunk_attention.h", "sessions.batch - sessions.ring()", "sessions.batch - 3"),
    ("falcon-rw", "chunk_attention.h", "place[i] = float(row.cache_position)", "place[i] = float(behind)"),
    ("falcon-rw", "chunk_attention.h", "last[i] = float(behind - 1)", "last[i] = 0"),
    ("falcon-rw", "panels.h", "out.at(panel, to + r)[i] += m.bias[first + r]", ""),
    ("llama-gqa", "panels.h", "add || column > 0", "column > 0"),
    ("qwen3", "chunk.cpp", "head < kHeads ? layer.q_norm : layer.k_norm", "layer.q_norm"),
    ("mpt-7b", "chunk.cpp", "if (model_.clip_qkv > 0)", "if (model_.clip_qkv < 0)"),
    ("falcon-40b", "chunk.cpp", "if (!model_.is_shared_norm) {", "if (model_.is_shared_norm) {"),
    ("falcon-7b", "chunk.cpp", "if (!model_.is_parallel) {", "{"),
    ("llama-gqa", "chunk.cpp", "gate[i] *= up[i]", ""),
    ("llama-gqa", "chunk.cpp", "cache + i * sessions_.layer_size()", "cache"),
]


@pytest.mark.quick("llama-gqa-chunk_attention.h-turn*", "falcon-rw-chunk_attention.h-last*", "qwen3-*")
@pytest.mark.parametrize(("variant", "file", "right", "wrong"), MUTATIONS)
def test_the_comparison_sees_a_mutated_chunk(
    variant: str, file: str, right: str, wrong: str, compare: Compare, tmp_path: Path
) -> None:
    sources = mutated_sources(tmp_path, file, right, wrong)
    comparison = compare(variant)
    library = comparison.compile(tmp_path / "step.so", "-march=native", "-O0", folder=sources)
    assert not comparison.worst_error(library, steps=1) < 1e-3
