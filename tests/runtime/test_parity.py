"""Logits of built engines: transformers' below C, the reference's from there to 4C, for every family variant.

The cuda target's engines run on the CPU here, with what defines their kernels; a few variants see all that differs.
Those with a quantized KV cache are compared with a reference whose keys and values went through one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.checkpoints import VARIANTS, write_checkpoint
from tests.engines import build_variant, load_on_cpu, random_tokens, reference_logits
from tests.mutants import load_mutant
from trtstream.build.checkpoint import Checkpoint, open_checkpoint
from trtstream.build.families import gpt_neox, mpt, partial_rotary
from trtstream.engine_dir import WEIGHTS
from trtstream.runtime.cuda import CudaBackend
from trtstream.runtime.decoder import read_weights
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.streaming_engine import StreamingEngine

RING, MAX_SINKS = 20, 24
TOLERANCE = 1e-4  # of the logits' standard deviation
# Of products that differ in their last bits, a few numbers are quantized to the next step. Without the cache's
# quantization, logits differ by 0.07 (int8) and more.
QUANTIZED_TOLERANCE = 1e-2
ENGINES = [("cpu", variant) for variant in VARIANTS]
CUDA = ("llama-gqa", "llama-rope-yarn", "qwen3", "phi3", "falcon-rw", "mpt-7b")
ENGINES += [("cuda", variant) for variant in CUDA]
KV_ENGINES = [("cuda-int8", "llama-gqa"), ("cuda-fp8", "falcon-rw")]
# Few sinks or none are not another case for every variant: grouped and multiple queries, scaled RoPE, ALiBi.
FEW_SINKS = ("llama-gqa", "llama-rope-yarn", "falcon-7b", "falcon-rw")
SINKS = [
    (engine, sinks) for engine in ENGINES for sinks in (0, 1, 4, MAX_SINKS) if sinks >= 4 or engine[1] in FEW_SINKS
]
KV_SINKS = [(engine, sinks) for engine in KV_ENGINES for sinks in (4, MAX_SINKS)]


def with_sinks(cases: list[tuple[tuple[str, str], int]]) -> pytest.MarkDecorator:
    ids = ["-".join((*engine, str(sinks))) for engine, sinks in cases]
    return pytest.mark.parametrize(("built", "sinks"), cases, indirect=["built"], ids=ids)


with_kv_engines = pytest.mark.parametrize("built", ENGINES + KV_ENGINES, indirect=True, ids="-".join)


@dataclass(frozen=True)
class Built:
    folder: Path
    checkpoint: Checkpoint
    engine: StreamingEngine
    kv_dtype: str | None

    def tokens(self, count: int) -> list[int]:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(self.checkpoint.model.vocab_size, (count,), generator=generator).tolist()

    def steps(self, lane: int, tokens: list[int]) -> torch.Tensor:
        return torch.cat([self.engine.decode([lane], [token]) for token in tokens])

    @property
    def tolerance(self) -> float:
        return TOLERANCE if self.kv_dtype is None else QUANTIZED_TOLERANCE


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Built]:
    @cache
    def build(target: str, variant: str) -> Built:
        folder = tmp_path_factory.mktemp(variant)
        target, _, kv_dtype = target.partition("-")
        checkpoint, engine = build_variant(
            folder, variant, target, kv_dtype=kv_dtype or None,
            max_batch_size=3, max_attention_window=MAX_SINKS + RING, max_num_tokens=64,
            max_sink_token_length=MAX_SINKS,
        )  # fmt: skip
        return Built(folder, checkpoint, load_on_cpu(engine), kv_dtype or None)

    return build


@pytest.fixture(params=ENGINES, ids="-".join)
def built(request: pytest.FixtureRequest, build: Callable[[str, str], Built]) -> Built:
    """An engine whose sessions hold what the tests before left in them."""
    return build(*request.param)


def transformers_logits(folder: Path, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.falcon import modeling_falcon

    def float32_alibi(mask: torch.Tensor, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
        """transformers rounds slope * position to bfloat16; the same formula without that (32 heads)."""
        slopes = 2.0 ** (-8 / num_heads * torch.arange(1, num_heads + 1))
        return (slopes[:, None] * torch.arange(mask.shape[1])).reshape(num_heads, 1, -1).to(dtype)

    monkeypatch.setattr(modeling_falcon, "build_alibi_tensor", float32_alibi)
    # Not "eager", which adds ALiBi's bias twice (transformers 5.23: once in the mask, once to the scores).
    # But MPT has no other.
    attention = "eager" if AutoConfig.from_pretrained(folder).model_type == "mpt" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]


def assert_equal(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert (found - expected).abs().max() < tolerance * expected.std()


@pytest.mark.quick("cpu-*-4", "cuda-llama-gqa-24", "cuda-falcon-rw-4")
@with_sinks(SINKS)
def test_dense_below_capacity(built: Built, sinks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = built.tokens(sinks + RING)
    expected = transformers_logits(built.folder / "checkpoint", tokens, monkeypatch)
    built.engine.reset(0, sinks)
    assert_equal(built.steps(0, tokens), expected)
    built.engine.reset(1, sinks)
    assert_equal(built.engine.prefill(1, tokens), expected[-1])


def test_the_comparison_sees_heads_that_are_not_normalized(
    build: Callable[[str, str], Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build("cuda", "qwen3")
    tokens = built.tokens(RING)
    expected = transformers_logits(built.folder / "checkpoint", tokens, monkeypatch)
    model, build_config = built.engine.model, built.engine.build
    weights = read_weights(built.folder / "engine" / WEIGHTS, model, torch.device("cpu"))
    layers = [replace(layer, head_norms=None) for layer in weights.layers]
    backend = CudaBackend(model, build_config, replace(weights, layers=layers))
    engine = StreamingEngine(model, build_config, backend)
    engine.reset(0, 4)
    assert (engine.prefill(0, tokens) - expected[-1]).abs().max() > 100 * TOLERANCE * expected.std()


MUTATIONS = {
    "gpt-neox's rows as stored": (
        ("gpt-neox", gpt_neox, "spread", partial_rotary),
        ("(first, rest, second, last)", "(first, second, rest, last)"),
    ),
    "gpt-neox's pairs not half a head apart": (
        ("gpt-neox", gpt_neox, "spread", partial_rotary),
        ("(first, rest, second, last)", "(first, rest, last, second)"),
    ),
    "mpt-7b's slopes in another order": (
        ("mpt-7b", mpt, "alibi_slopes", mpt),
        ("[*slopes[1::2], *slopes[::2]]", "[*slopes[::2], *slopes[1::2]]"),
    ),
    "mpt-7b's slopes scaled as Falcon's": (
        ("mpt-7b", mpt, "alibi_slopes", mpt),
        ("[2.0 ** (-bias_max * i / power_of_two)", "[8**-0.5 * 2.0 ** (-bias_max * i / power_of_two)"),
    ),
}


@pytest.mark.parametrize(("place", "change"), MUTATIONS.values(), ids=MUTATIONS)
def test_the_comparison_sees_a_mutated_family(
    place: tuple[str, ModuleType, str, ModuleType],
    change: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variant, family, function, source = place
    folder, tokens = write_checkpoint(tmp_path / variant, variant), random_tokens(RING)
    expected = transformers_logits(folder, tokens, monkeypatch)
    assert_equal(reference_logits(open_checkpoint(folder), tokens, 4, RING), expected)
    monkeypatch.setattr(family, function, getattr(load_mutant(source, *change, tmp_path), function))
    wrong = reference_logits(open_checkpoint(folder), tokens, 4, RING)
    assert (wrong - expected).abs().max() > 100 * TOLERANCE * expected.std()


@pytest.mark.quick(
    "cpu-llama-gqa-[014]", "cpu-falcon-*-24", "cpu-mpt-7b-24", "cpu-qwen3-24", "cuda-llama-gqa-4", "cuda-falcon-rw-24"
)
@with_sinks(SINKS + KV_SINKS)
def test_streaming_to_four_times_capacity(built: Built, sinks: int) -> None:
    tokens = built.tokens(4 * (sinks + RING) + 3)
    expected = reference_logits(built.checkpoint, tokens, sinks, RING, kv_dtype=built.kv_dtype)
    log_probs = expected[:-1].log_softmax(dim=-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    built.engine.reset(0, sinks)
    assert_equal(built.steps(0, tokens), expected, built.tolerance)
    # Divides the ring, does not, is the ring, is larger.
    for size in (1, 5, 7, RING, 31, 64) if sinks == 4 else (5, 64):
        built.engine.reset(1, sinks)
        chunks = [built.engine.score(1, tokens[i : i + size]) for i in range(0, len(tokens), size)]
        assert (torch.cat(chunks)[1:] - log_probs).abs().max() < built.tolerance * expected.std()
    built.engine.reset(2, sinks)
    assert_equal(built.engine.prefill(2, tokens), expected[-1], built.tolerance)


@pytest.mark.quick("*-llama-gqa", "cpu-falcon-rw")
def test_the_comparison_sees_a_sink_off_by_one(built: Built) -> None:
    tokens = built.tokens(3 * (4 + RING))
    built.engine.reset(0, 4)
    found = built.steps(0, tokens)
    for wrong in ((3, RING + 1), (5, RING - 1), (4, RING - 1)):
        expected = reference_logits(built.checkpoint, tokens, *wrong)
        assert (found - expected).abs().max() > 100 * TOLERANCE * expected.std()


@pytest.mark.quick("cpu-llama-gqa", "cpu-falcon-rw", "cuda-qwen3")
@with_kv_engines
def test_rebuilt_from_its_ids(built: Built) -> None:
    """DESIGN: the receptive field grows by R - 1 tokens a layer, so L (R - 1) + 1 recent ids and the sinks suffice."""
    receptive_field = built.checkpoint.model.num_hidden_layers * (RING - 1) + 1
    tokens = built.tokens(3 * receptive_field)
    built.engine.reset(0, 4)
    before = built.engine.prefill(0, tokens)
    exported = built.engine.export_state(0)
    assert len(exported.token_ids) == 4 + receptive_field
    fresh = load_on_cpu(built.folder / "engine")
    fresh.import_state(2, SessionState(4, exported.position, exported.token_ids))
    assert fresh.position(2) == len(tokens)
    next_tokens = built.tokens(2 * RING)
    expected = built.steps(0, next_tokens)
    assert_equal(torch.cat([fresh.decode([2], [t]) for t in next_tokens]), expected, built.tolerance)
    fresh.import_state(1, exported)
    assert torch.equal(torch.cat([fresh.decode([1], [t]) for t in next_tokens]), expected)
    too_few = SessionState(4, exported.position, exported.token_ids[:4] + exported.token_ids[4 + RING :])
    fresh.import_state(0, too_few)
    assert (fresh.decode([0], next_tokens[:1])[0] - expected[0]).abs().max() > TOLERANCE * before.std()


@pytest.mark.quick("cpu-llama-gqa", "cpu-falcon-rw", "cuda-llama-rope-yarn")
@with_kv_engines
def test_a_session_at_position_four_million(built: Built) -> None:
    start = 4_000_000
    tokens = built.tokens(4 + 60)
    t = torch.cat((torch.arange(4), torch.arange(start, start + 60)))
    expected = reference_logits(built.checkpoint, tokens, 4, RING, dtype=torch.float64, t=t, kv_dtype=built.kv_dtype)
    built.engine.import_state(0, SessionState(4, start + 30, tokens[:34]))
    assert_equal(built.steps(0, tokens[34:]), expected[34:], built.tolerance)
    built.engine.import_state(1, SessionState(4, start + 59, tokens[:63]))
    assert_equal(built.engine.prefill(1, tokens[63:]), expected[63], built.tolerance)
