"""The cuda target's engine without a GPU: the decode step as a module, padded batches, states, and its kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engines import MAX_SINKS, RING, SIZES, build_variant, load_on_cpu, random_tokens, reference_logits
from tests.runtime.clients import ask, byte_tokenizer
from trtstream.build.checkpoint import Checkpoint
from trtstream.errors import TrtstreamError
from trtstream.plugins.cuda_device import check_kv_dtype, why_no_cuda
from trtstream.plugins.decode_plan import Step, step_rotation
from trtstream.plugins.positions import PositionEncoding
from trtstream.plugins.window import Window
from trtstream.runtime.cuda import PADDING, DecodeStep, PrefillStep
from trtstream.runtime.decoder import collect_weights
from trtstream.runtime.loading import load_engine
from trtstream.runtime.scheduler import Scheduler
from trtstream.runtime.scheduler_limits import SchedulerLimits
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.targets import KV_DTYPES

TOLERANCE = 1e-4  # of the logits' standard deviation
QUANTIZED_TOLERANCE = 1e-2  # with a quantized cache: a number may be quantized to the next step


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    return build_variant(tmp_path_factory.mktemp("cuda"), "llama-gqa", "cuda", **SIZES)


@pytest.fixture
def engine(built: tuple[Checkpoint, Path]) -> StreamingEngine:
    return load_on_cpu(built[1])


def steps(engine: StreamingEngine, lane: int, fed: list[int]) -> torch.Tensor:
    return torch.cat([engine.decode([lane], [token]) for token in fed])


def test_the_decode_step_exports_and_runs_as_exported(built: tuple[Checkpoint, Path]) -> None:
    """No shape in it depends on data and nothing waits for the host, or torch.export would refuse it."""
    checkpoint = built[0]
    model, window = checkpoint.model, Window(4, MAX_SINKS, RING)
    weights = collect_weights(model, set(checkpoint.tensor_names()), checkpoint.tensor, pack=False)
    sessions = 2
    sizes = sessions + 1, model.num_hidden_layers, 2, model.num_key_value_heads, MAX_SINKS + RING, model.head_dim
    step = DecodeStep(model, weights, PositionEncoding.of(model), torch.zeros(sizes), MAX_SINKS)

    def inputs(t: int, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Both sessions at t, and a row of padding."""
        rows = [*(Step(lane, window, t, 4).row() for lane in range(sessions)), PADDING]
        at = [[t, window.cache_position(t)]] * sessions + [[0, 0]]
        return torch.tensor([*ids, 0]), torch.tensor(rows), torch.tensor(at)

    fed = [random_tokens(60), random_tokens(60, seed=1)]
    exported = torch.export.export(step, inputs(0, [0, 0])).module()
    with torch.inference_mode():
        found = torch.stack([exported(*inputs(t, [fed[0][t], fed[1][t]])) for t in range(60)], dim=1)
    for lane in range(sessions):
        expected = reference_logits(checkpoint, fed[lane], 4, RING)
        assert (found[lane] - expected).abs().max() < TOLERANCE * expected.std()


def test_the_prefill_step_exports_and_runs_as_exported(built: tuple[Checkpoint, Path]) -> None:
    """As the decode step, for chunks of all lengths up to 16 of a session that wraps."""
    checkpoint = built[0]
    model, window = checkpoint.model, Window(4, MAX_SINKS, RING)
    weights = collect_weights(model, set(checkpoint.tensor_names()), checkpoint.tensor, pack=False)
    sizes = 2, model.num_hidden_layers, 2, model.num_key_value_heads, MAX_SINKS + RING, model.head_dim
    step = PrefillStep(model, weights, PositionEncoding.of(model), torch.zeros(sizes), MAX_SINKS)

    def inputs(t: int, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        row = Step(1, window, t, 4).chunk(len(ids))
        return torch.tensor(row), torch.tensor([len(ids) - 1]), torch.tensor([*ids, *[0] * (16 - len(ids))])

    fed = random_tokens(136)
    exported = torch.export.export(step, inputs(0, [0])).module()
    expected = reference_logits(checkpoint, fed, 4, RING)
    for length in range(1, 17):
        first = length * (length - 1) // 2
        with torch.inference_mode():
            found = exported(*inputs(first, fed[first : first + length]))
        assert (found[0] - expected[first + length - 1]).abs().max() < TOLERANCE * expected.std()


def padded_and_not(folder: Path) -> tuple[StreamingEngine, StreamingEngine]:
    """Engines that compute prompts of up to 80 tokens in padded steps, and as they are."""
    padded, unpadded = (load_on_cpu(folder) for _ in range(2))
    assert [step.size for step in padded.backend.prompts] == [16, 32, 64, 80]
    unpadded.backend.prompts = []
    return padded, unpadded


@pytest.mark.parametrize("before", [0, 2, 15, 90])
def test_a_padded_prompt_equals_an_unpadded_one_and_is_undone(before: int, tmp_path: Path) -> None:
    """Chunks of every size of step, some longer than the ring."""
    checkpoint, folder = build_variant(tmp_path, "llama-gqa", "cuda", **SIZES | {"max_num_tokens": 80})
    engines = padded_and_not(folder)
    for length in (1, 16, 17, 33, 64, 65, 80):
        fed, logits, caches = random_tokens(before + length), [], []
        for engine in engines:
            engine.reset(1)
            if before:
                engine.prefill(1, fed[:before])
            was = engine.export_state(1)
            others = [engine.export_state(lane).kv_cache for lane in (0, 2)]
            engine.begin_turn(1)
            logits.append(engine.prefill(1, fed[before:]))
            caches.append(engine.export_state(1).kv_cache)
            assert all(map(torch.equal, others, (engine.export_state(lane).kv_cache for lane in (0, 2))))
            engine.rollback_turn(1)
            assert torch.equal(engine.export_state(1).kv_cache, was.kv_cache)
        expected = reference_logits(checkpoint, fed, 4, RING)
        assert (logits[0] - expected[-1]).abs().max() < TOLERANCE * expected.std()
        assert (logits[0] - logits[1]).abs().max() < TOLERANCE * expected.std()
        assert (caches[0] - caches[1]).abs().max() < TOLERANCE * caches[1].std()


def test_angles_are_exact_far_out() -> None:
    """At t = 4,000,000 a float32 angle would be off by up to 0.2 rad."""
    frequencies = 10000.0 ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    t = 4_000_000
    found = step_rotation(PositionEncoding(frequencies), torch.tensor([[t, 23]]))[0]
    expected = torch.stack([f(p * frequencies) for p in (t, 23) for f in (torch.cos, torch.sin)])
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize("kv_dtype", [None, *KV_DTYPES])
@pytest.mark.parametrize("before", [0, 2, 15, 90])
@pytest.mark.parametrize("turn", [1, 19, 33])
def test_rollback_leaves_no_trace(built: tuple[Checkpoint, Path], before: int, turn: int, kv_dtype: str | None) -> None:
    """In a session that was parked in the middle of its turn, too."""
    engine = load_on_cpu(built[1], kv_dtype=kv_dtype)
    if before:
        engine.prefill(0, random_tokens(before))
    was = engine.export_state(0)
    engine.begin_turn(0)
    engine.prefill(0, random_tokens(turn, seed=1))
    engine.resume(2, engine.park(0))
    steps(engine, 2, random_tokens(turn, seed=2))
    engine.resume(0, engine.park(2))
    engine.rollback_turn(0)
    assert (engine.position(0), engine.visible_tokens(0)) == (
        was.position,
        was.token_ids[:4] + was.token_ids[4:][-RING:],
    )
    engine.import_state(1, was)
    after = [(engine.prefill(lane, random_tokens(turn, seed=3)), engine.decode([lane], [5])) for lane in (0, 1)]
    assert torch.equal(after[0][0], after[1][0])
    assert torch.equal(after[0][1], after[1][1])


def test_sessions_move_between_cpu_and_cuda_engines(
    engine: StreamingEngine, built: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    """As token ids, and as caches too where both have one dtype."""
    cpu = load_on_cpu(build_variant(tmp_path, "llama-gqa", **SIZES)[1])
    fed = random_tokens(300)
    for giver, taker in ((engine, cpu), (cpu, engine)):
        giver.reset(0, 3)
        giver.prefill(0, fed)
        state = giver.export_state(0)
        expected = steps(giver, 0, random_tokens(40, seed=1))
        for given in (state, SessionState(3, state.position, state.token_ids)):
            taker.import_state(1, given)
            assert taker.position(1) == 300
            found = steps(taker, 1, random_tokens(40, seed=1))
            assert (found - expected).abs().max() < TOLERANCE * expected.std()


@pytest.mark.parametrize(("given", "kv_dtype"), [(None, "int8"), ("int8", "fp8"), ("fp8", None)])
def test_a_cache_of_another_kv_dtype_is_refused_and_rebuilt_from_its_ids(
    given: str | None, kv_dtype: str | None, built: tuple[Checkpoint, Path]
) -> None:
    giver, taker = (load_on_cpu(built[1], kv_dtype=each) for each in (given, kv_dtype))
    giver.prefill(0, random_tokens(300))
    state = giver.export_state(0)
    assert state.kv_cache is not None
    assert state.kv_cache.nbytes == giver.session_bytes
    with pytest.raises(
        TrtstreamError, match=r"cache is .* torch\.\w+, and this engine's is .*without kv_cache"
    ) as refused:
        taker.import_state(1, state)
    assert "\n" not in str(refused.value)
    taker.import_state(1, replace(state, kv_cache=None))
    taker.prefill(0, random_tokens(300))
    expected, found = (steps(taker, lane, random_tokens(40, seed=1)) for lane in (0, 1))
    assert (found - expected).abs().max() < QUANTIZED_TOLERANCE * expected.std()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_saved_session_goes_on_exactly(kv_dtype: str, built: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    """Exported whole and layer by layer, through files and copied to another lane."""
    engine = load_on_cpu(built[1], kv_dtype=kv_dtype)
    engine.prefill(0, random_tokens(50))
    engine.export_state(0).save(tmp_path / "whole", {})
    *_, by_layer = engine.export_by_layer(0)
    by_layer.save(tmp_path / "by layer", {})
    engine.copy_session(0, 3)
    for lane, name in ((1, "whole"), (2, "by layer")):
        engine.import_state(lane, SessionState.load(tmp_path / name, {})[0])
    expected, *others = (steps(engine, lane, random_tokens(40, seed=1)) for lane in range(4))
    assert all(torch.equal(found, expected) for found in others)


def test_fp8_is_refused_on_a_gpu_that_cannot_convert_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    for capability, refused in (((8, 0), True), ((8, 6), True), ((8, 9), False), ((12, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        for kv_dtype in (None, "int8"):
            check_kv_dtype(kv_dtype)
        with pytest.raises(TrtstreamError, match=r"fp8.*8\.9.*A100 has 8\.[06]; .*int8") if refused else nullcontext():
            check_kv_dtype("fp8")


@pytest.mark.skipif(why_no_cuda() is None, reason="this machine can run it")
def test_loading_without_a_gpu_is_refused_in_one_line(built: tuple[Checkpoint, Path]) -> None:
    with pytest.raises(TrtstreamError, match=r"target 'cuda' and cannot run here: .*torch") as refused:
        load_engine(built[1])
    assert "\n" not in str(refused.value)


# In its own process: in this one the Triton language uses its interpreter, even with a GPU.
FEED = """
import sys
from pathlib import Path
import torch
from tests.engines import load_on_cpu
from trtstream.runtime.loading import load_engine
from trtstream.runtime.scheduler import Scheduler
from trtstream.runtime.scheduler_limits import SchedulerLimits

load = {"cpu": load_on_cpu, "gpu": load_engine}[sys.argv[1]]
ids = torch.load(sys.argv[2])
for folder in map(Path, sys.argv[3:]):
    engine = load(folder)
    logits = [engine.prefill(0, ids[:26])]
    for token in ids[26:]:
        logits.append(engine.decode([1, 2, 0], [token, 7, token])[2])
    torch.save(torch.stack(logits).cpu(), folder / "logits.pt")
"""


def check_kernels(folder: Path, variants: dict[str, dict], num_tokens: int, device: str, **environment: str) -> None:
    """Engines of the variants compute the same with the kernels as with the kernels' definition.

    ``variants`` has the settings of each. The prompt of 26 tokens ends past C.
    """
    ids = random_tokens(num_tokens)
    torch.save(ids, folder / "ids.pt")
    engines = [
        build_variant(folder / variant, variant, "cuda", **SIZES, **settings)[1]
        for variant, settings in variants.items()
    ]
    command = [sys.executable, "-c", FEED, device, folder / "ids.pt", *engines]
    subprocess.run(command, check=True, env={**os.environ, **environment}, timeout=300)
    for engine_folder in engines:
        engine = load_on_cpu(engine_folder)
        expected = torch.stack([engine.prefill(0, ids[:26]), *steps(engine, 0, ids[26:])])
        found = torch.load(engine_folder / "logits.pt")
        tolerance = TOLERANCE if engine.build.kv_dtype is None else QUANTIZED_TOLERANCE
        assert (found - expected).abs().max() < tolerance * expected.std()


@pytest.mark.slow
def test_the_kernels_run_inside_the_engine(tmp_path: Path) -> None:
    variants = {"falcon-mha-parallel": {"quantization": "int4"}, "llama-gqa": {"kv_dtype": "int8"}}
    check_kernels(tmp_path, variants, 28, "cpu", TRITON_INTERPRET="1")


@pytest.mark.skipif(why_no_cuda() is not None, reason=f"needs a GPU: {why_no_cuda()}")
def test_a_gpu_computes_the_same(tmp_path: Path) -> None:
    variants = {
        "llama-gqa": {},
        "llama-bias": {"quantization": "int8", "kv_dtype": "int8"},
        "falcon-mha-parallel": {"quantization": "int4"},
        "falcon-rw": {"kv_dtype": "int8"},
    }
    check_kernels(tmp_path, variants, 100, "gpu")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_turns_run_on_the_gpu_that_the_engine_was_loaded_on(tmp_path: Path) -> None:
    _, folder = build_variant(tmp_path, "llama-gqa", "cuda", **SIZES)
    with torch.cuda.device(1):
        engine = load_engine(folder)
    scheduler = Scheduler(engine, byte_tokenizer(), SchedulerLimits())
    ids = ask(scheduler, input_ids=random_tokens(30), max_tokens=20, ignore_eos=True).ids
    scheduler.close()
    assert engine.device == torch.device("cuda", 1)
    on_cpu = load_on_cpu(folder)
    logits = on_cpu.prefill(0, random_tokens(30))
    for token in ids:
        assert logits[token] > logits.max() - 1e-3
        logits = on_cpu.decode([0], [token])[0]
