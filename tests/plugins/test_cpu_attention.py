"""The cpu target's attention, one step (C++) and chunked (torch), against the reference."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from trtstream.plugins.chunk_attention import chunk_attention, plan_chunk
from trtstream.plugins.cpu_kernel import FOLDER, THIS_CPU, compile_library, geometry
from trtstream.plugins.decode_plan import Step, StepPlan, chunk_steps, plan_step
from trtstream.plugins.huge_pages import new_memory
from trtstream.plugins.positions import PositionEncoding, inverse_frequencies
from trtstream.plugins.reference import streaming_attention
from trtstream.plugins.window import Window
from trtstream.runtime.cpu_step import address, sessions
from trtstream.settings import BuildConfig, ModelConfig, RopeConfig

SOURCE = Path(__file__).with_name("cpu_attention.cpp")


@dataclass(frozen=True)
class Layout:
    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeConfig | None


LAYOUTS = {
    "mha": Layout(4, 4, 16, RopeConfig()),
    "gqa": Layout(6, 2, 32, RopeConfig()),
    "mqa": Layout(5, 1, 8, RopeConfig()),
    "alibi": Layout(32, 32, 4, rope=None),
    "yarn": Layout(4, 2, 16, RopeConfig("yarn", factor=4.0, original_max_position_embeddings=64)),
}


class Attention:
    """One attention layer with random projections, and the ways to run it."""

    def __init__(
        self, layout: Layout, sinks: int, max_sinks: int, ring: int, folder: Path, dtype: str = "float32"
    ) -> None:
        self.layout, self.window = layout, Window(sinks, max_sinks, ring)
        self.positions = PositionEncoding.of(model(layout))
        self.dtype = getattr(torch, dtype)
        self.build = BuildConfig(
            max_batch_size=3, max_attention_window=max_sinks + ring, sink_token_length=sinks,
            max_sink_token_length=max_sinks, dtype=dtype,
        )  # fmt: skip
        library = folder / f"{hash((layout, self.build))}.so"
        if not library.exists():
            compile_library(SOURCE, geometry(model(layout), self.build), library, THIS_CPU, f"-I{FOLDER}")
        self.library = ctypes.CDLL(str(library))
        self.cache = torch.zeros(3, 2, layout.kv_heads, max_sinks + ring, layout.head_dim, dtype=self.dtype)

    def qkv(self, tokens: int, seed: int = 0) -> torch.Tensor:
        width = (self.layout.heads + 2 * self.layout.kv_heads) * self.layout.head_dim
        return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)).to(self.dtype)

    def reference(self, qkv: torch.Tensor) -> torch.Tensor:
        heads, kv_heads = self.layout.heads, self.layout.kv_heads
        q, k, v = qkv.float().view(len(qkv), -1, self.layout.head_dim).split((heads, kv_heads, kv_heads), dim=1)
        frequencies, scale = None, 1.0
        if self.layout.rope is not None:
            frequencies, scale = inverse_frequencies(self.layout.rope, self.layout.head_dim)
        return streaming_attention(q, k, v, self.window.sinks, self.window.ring, frequencies, scale).flatten(1)

    def steps(self, qkv: torch.Tensor, lane: int = 1, first: int = 0) -> torch.Tensor:
        return torch.cat([self.step([(lane, first + i, x)]) for i, x in enumerate(qkv)])

    def step(self, each: list[tuple[int, int, torch.Tensor]]) -> torch.Tensor:
        plan = plan_step(self.positions, [Step(lane, self.window, t, self.window.sinks) for lane, t, _ in each])
        return self.attend(torch.stack([x for _, _, x in each]), plan)

    def attend(self, qkv: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        """Rotate, write and attend for the tokens of ``plan``, in the library."""
        threads = torch.get_num_threads()
        self.library.attention_bytes.restype = ctypes.c_int64
        workspace = new_memory(self.library.attention_bytes(ctypes.c_int64(len(qkv)), ctypes.c_int64(threads)))
        projected, out = qkv.float(), torch.empty(len(qkv), self.layout.heads * self.layout.head_dim)
        self.library.decode_attention(
            sessions(self.cache, plan, self.window.max_sinks), address(projected), address(self.cache),
            address(workspace), ctypes.c_int64(threads), address(out),
        )  # fmt: skip
        return out.to(qkv.dtype)

    def step_chunks(self, qkv: torch.Tensor, size: int, lane: int = 1) -> torch.Tensor:
        """Chunks in the library, which computes them token by token."""
        outputs = []
        for first in range(0, len(qkv), size):
            steps = chunk_steps(Step(lane, self.window, first, self.window.sinks), len(qkv[first : first + size]))
            outputs.append(self.attend(qkv[first : first + size], plan_step(self.positions, steps)))
        return torch.cat(outputs)

    def chunks(self, qkv: torch.Tensor, size: int, lane: int = 1) -> torch.Tensor:
        outputs = []
        for first in range(0, len(qkv), size):
            chunk = qkv[first : first + size]
            plan = plan_chunk(self.window, self.positions, first, len(chunk), self.window.sinks)
            outputs.append(chunk_attention(chunk, self.cache[lane], plan, self.layout.heads))
        return torch.cat(outputs)


def model(layout: Layout) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM", vocab_size=1, hidden_size=1, intermediate_size=1, num_hidden_layers=1,
        num_attention_heads=layout.heads, num_key_value_heads=layout.kv_heads, head_dim=layout.head_dim,
        max_position_embeddings=64, norm="rms", norm_eps=1e-6, hidden_act="silu", gated_mlp=True, residual="sequential",
        shared_norm=False, tie_word_embeddings=False, rope=layout.rope, bos_token_id=None, eos_token_ids=(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


# For every layout all numbers of sinks in one kernel; for two of them kernels for fewer, and for none, as well.
SINKS = [(layout, sinks, 24) for layout in LAYOUTS for sinks in (0, 1, 4, 24)]
SINKS += [(layout, *sinks) for layout in ("gqa", "alibi") for sinks in ((0, 0), (1, 1), (4, 4), (2, 7))]


@pytest.mark.quick("gqa-4-24", "mqa-4-24", "gqa-2-7", "alibi-0-0")
@pytest.mark.parametrize(("layout", "sinks", "max_sinks"), SINKS)
def test_steps_and_chunks_equal_the_reference(layout: str, sinks: int, max_sinks: int, libraries: Path) -> None:
    attention = Attention(LAYOUTS[layout], sinks, max_sinks, 20, libraries)
    qkv = attention.qkv(4 * (sinks + 20) + 3)
    expected = attention.reference(qkv)
    assert (attention.steps(qkv) - expected).abs().max() < 2e-5
    for size in (1, 5, 7, 20, 31, len(qkv)):  # divides the ring, does not, is the ring, is larger, is everything
        attention.cache.fill_(torch.nan)  # slots that were never written must never be read
        attention.cache.nan_to_num_(1e3)
        assert (attention.chunks(qkv, size) - expected).abs().max() < 2e-5, size
    for size in (5, 31):
        attention.cache.fill_(1e3)
        assert (attention.step_chunks(qkv, size) - expected).abs().max() < 2e-5, size


def test_the_comparison_sees_a_sink_off_by_one(libraries: Path) -> None:
    attention = Attention(LAYOUTS["gqa"], 4, 4, 20, libraries)
    qkv = attention.qkv(60)
    right = attention.reference(qkv)
    attention.window = replace(attention.window, sinks=3)
    assert (attention.steps(qkv) - right).abs().max() > 1e-3
    assert (attention.chunks(qkv, 7) - right).abs().max() > 1e-3
    assert (attention.step_chunks(qkv, 7) - right).abs().max() > 1e-3


def test_the_cache_is_larger_than_one_block_of_the_library(libraries: Path) -> None:
    attention = Attention(LAYOUTS["gqa"], 4, 4, 600, libraries)
    qkv = attention.qkv(1300)
    expected = attention.reference(qkv)
    assert (attention.chunks(qkv[:1290], 100) - expected[:1290]).abs().max() < 2e-5
    assert (attention.steps(qkv[1290:], first=1290) - expected[1290:]).abs().max() < 2e-5


@pytest.mark.parametrize("first", [0, 50, 500])  # nothing before it, a part of the ring, a ring that has wrapped
def test_a_chunk_skips_keys_that_no_query_of_a_block_sees(first: int) -> None:
    positions = PositionEncoding.of(model(LAYOUTS["gqa"]))
    plan = plan_chunk(Window(4, 4, 100), positions, first, 150, 4)
    visible, sinks = plan.bias[0] > -torch.inf, plan.old_sinks + plan.new_sinks
    assert [queries for queries, _ in plan.blocks] == [slice(0, 64), slice(64, 128), slice(128, 150)]
    for queries, keys in plan.blocks:
        seen = visible[queries, sinks:].any(dim=0).nonzero().flatten()
        assert (keys.start, keys.stop) == (sinks + seen.min(), sinks + seen.max() + 1)
        assert keys.stop - keys.start <= 100 + queries.stop - queries.start


def test_sessions_of_one_step_do_not_touch_each_other(libraries: Path) -> None:
    attention = Attention(LAYOUTS["gqa"], 4, 4, 20, libraries)
    young, old = attention.qkv(10, seed=1), attention.qkv(70, seed=2)
    attention.chunks(old[:60], 60, lane=2)
    found = [attention.step([(2, 60 + i, old[60 + i]), (0, i, young[i])]) for i in range(10)]
    expected = torch.stack((attention.reference(old)[60:], attention.reference(young)), dim=1)
    assert (torch.stack(found) - expected).abs().max() < 2e-5
    assert attention.cache[1].abs().max() == 0


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_a_step(threads: int, libraries: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        attention = Attention(LAYOUTS["gqa"], 4, 4, 600, libraries)
        qkv = attention.qkv(1300)
        attention.chunks(qkv[:1200], 100, lane=0)
        attention.chunks(qkv[:1200], 100, lane=2)
        found = torch.stack([attention.step([(2, t, qkv[t]), (0, t, qkv[t])]) for t in range(1200, 1300)])
        chunks = attention.step_chunks(qkv, 31)
    finally:
        torch.set_num_threads(before)
    expected = attention.reference(qkv)
    assert (found - expected[1200:, None]).abs().max() < 2e-5
    assert (chunks - expected).abs().max() < 2e-5


@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_next_to_tokens(threads: int, libraries: Path) -> None:
    """A step with a chunk of one session, a token of another, and a chunk that wraps the third one's ring."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        attention = Attention(LAYOUTS["gqa"], 4, 4, 20, libraries)
        qkv = [attention.qkv(100, seed=lane) for lane in range(3)]
        fed, lengths = [0, 37, 60], [9, 1, 17]
        for lane in (1, 2):
            attention.chunks(qkv[lane][: fed[lane]], 20, lane=lane)
        firsts = [Step(lane, attention.window, fed[lane], 4) for lane in range(3)]
        steps = [step for first, n in zip(firsts, lengths, strict=True) for step in chunk_steps(first, n)]
        parts = [qkv[lane][fed[lane] : fed[lane] + lengths[lane]] for lane in range(3)]
        found = attention.attend(torch.cat(parts), plan_step(attention.positions, steps)).split(lengths)
    finally:
        torch.set_num_threads(before)
    for lane in range(3):
        expected = attention.reference(qkv[lane])[fed[lane] : fed[lane] + lengths[lane]]
        assert (found[lane] - expected).abs().max() < 2e-5


def test_bfloat16_within_its_own_error(libraries: Path) -> None:
    attention = Attention(LAYOUTS["gqa"], 4, 4, 20, libraries, dtype="bfloat16")
    qkv = attention.qkv(100)
    expected = attention.reference(qkv)
    for found in (attention.steps(qkv), attention.chunks(qkv, 7)):
        assert (found.float() - expected).abs().max() < 0.05
        assert (found.float() - expected).abs().mean() < 0.003


@pytest.mark.parametrize("layout", [LAYOUTS["gqa"], LAYOUTS["alibi"]], ids=["rope", "alibi"])
def test_at_position_four_million(layout: Layout, libraries: Path) -> None:
    """Distances alone matter: a ring that begins at t = 4,000,000 agrees with float64 there."""
    attention = Attention(layout, 0, 0, 20, libraries)
    first = 4_000_000
    qkv = attention.qkv(60)
    window, positions = attention.window, attention.positions
    plan = plan_chunk(window, positions, first, 30, ring_first=first)
    chunk = chunk_attention(qkv[:30], attention.cache[1], plan, layout.heads)
    steps = [
        attention.attend(qkv[i : i + 1], plan_step(positions, [Step(1, window, first + i, ring_first=first)]))
        for i in range(30, 60)
    ]
    expected = attention.reference(qkv)  # computed at 0 .. 59: attention depends on distances alone
    assert (torch.cat((chunk, *steps)) - expected).abs().max() < 2e-5
