"""Engines with a decode step for each batch size: sessions in a batch, and idle rows."""

from __future__ import annotations

import pytest
import torch

from tests.checkpoints import write_checkpoint
from tests.engines import SIZES, build_variant, load_on_cpu, random_tokens
from tests.tensorrt.interpreted_engine import interpreted_engine
from trtstream.build.checkpoint import open_checkpoint
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.settings import BuildConfig

TOLERANCE = 1e-4  # of the logits' standard deviation


@pytest.fixture(scope="module", params=["cuda", "tensorrt-rtx"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StreamingEngine:
    """An engine whose lanes hold the sessions of earlier tests."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "cuda":
        return load_on_cpu(build_variant(folder, "llama-gqa", "cuda", **SIZES)[1])
    return interpreted_engine(open_checkpoint(write_checkpoint(folder, "llama-gqa")), BuildConfig(**SIZES))


@pytest.mark.quick("*-lanes0", "*-lanes3")
@pytest.mark.parametrize("lanes", [[3], [4, 0], [2, 0, 4], [4, 3, 2, 1], [0, 1, 2, 3, 4]])
def test_a_batch_equals_each_session_alone(engine: StreamingEngine, lanes: list[int]) -> None:
    """Sessions of different ages and sinks; sessions outside the batch do not change."""
    sinks, first = [0, 1, 4, 8, 2], [1, 25, 19, 60, 7]
    fed = [random_tokens(70, seed=lane) for lane in range(5)]
    for lane in range(5):
        engine.reset(lane, sinks[lane])
        engine.prefill(lane, fed[lane][: first[lane]])
    before = [engine.export_state(lane) for lane in range(5)]
    together = [engine.decode(lanes, [fed[lane][first[lane] + i] for lane in lanes]) for i in range(10)]
    for lane in set(range(5)) - set(lanes):
        assert torch.equal(engine.export_state(lane).kv_cache, before[lane].kv_cache)
    for row, lane in enumerate(lanes):
        engine.import_state(0, before[lane])
        alone = torch.cat([engine.decode([0], [token]) for token in fed[lane][first[lane] : first[lane] + 10]])
        assert (torch.stack([logits[row] for logits in together]) - alone).abs().max() < TOLERANCE * alone.std()


def test_logits_outlive_later_steps(engine: StreamingEngine) -> None:
    engine.reset(0)
    engine.reset(1)
    logits = [engine.prefill(0, random_tokens(20)), engine.decode([0, 1], [5, 6])]
    kept = [x.clone() for x in logits]
    engine.prefill(1, random_tokens(20))
    for token in random_tokens(10):
        engine.decode([1, 0], [token, token])
    assert all(map(torch.equal, logits, kept))
