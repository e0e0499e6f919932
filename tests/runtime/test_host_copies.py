"""Copies of sessions in host memory whose bytes arrive late: whatever reads them waits until they are complete."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engines import random_tokens
from trtstream.runtime.host_copies import Arrival, host_bytes, host_memory
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.streaming_engine import StreamingEngine


class Late(Arrival):
    """The bytes of ``copy`` are complete once somebody has waited for them, and not before."""

    def __init__(self, copy: torch.Tensor) -> None:
        super().__init__(copy.device)
        self.copy = torch.zeros_like(copy)
        self._bytes = copy

    def wait(self) -> None:
        self.copy.copy_(self._bytes)


def late(state: SessionState) -> SessionState:
    assert state.kv_cache is not None
    arrival = Late(state.kv_cache)
    return replace(state, kv_cache=arrival.copy, arrival=arrival)


def go_on(engine: StreamingEngine, lane: int) -> torch.Tensor:
    return torch.stack([engine.decode([lane], [token])[0] for token in random_tokens(20, seed=9)])


@pytest.fixture
def fed(engine: StreamingEngine) -> StreamingEngine:
    """An engine with a session in lane 0, in the middle of a turn."""
    engine.reset(0)
    engine.prefill(0, random_tokens(50))
    engine.begin_turn(0)
    engine.prefill(0, random_tokens(20, seed=1))
    return engine


def test_a_file_has_the_bytes_that_arrive_late(fed: StreamingEngine, tmp_path: Path) -> None:
    state = fed.export_state(0)
    late(state).save(tmp_path / "session", {})
    loaded, _ = SessionState.load(tmp_path / "session", {})
    assert loaded.kv_cache is not None
    assert state.kv_cache is not None
    assert state.kv_cache.any()
    assert torch.equal(loaded.kv_cache, state.kv_cache)


def test_an_import_waits_for_its_bytes(fed: StreamingEngine) -> None:
    *_, by_layer = fed.export_by_layer(0)
    assert by_layer is not None
    fed.import_state(1, late(by_layer))
    fed.import_state(2, late(fed.export_state(0)))
    expected, *others = (go_on(fed, lane) for lane in range(3))
    assert all(torch.equal(found, expected) for found in others)


def test_a_parked_session_waits_for_its_bytes(fed: StreamingEngine) -> None:
    fed.import_state(1, fed.export_state(0))
    parked = fed.park(0)
    arrival = Late(parked.kv_cache)
    fed.resume(2, replace(parked, kv_cache=arrival.copy, arrival=arrival))
    assert torch.equal(go_on(fed, 2), go_on(fed, 1))


def test_a_turn_is_undone_once_its_session_has_arrived(fed: StreamingEngine) -> None:
    """Else late bytes would overwrite the slots that are restored."""
    fed.rollback_turn(0)
    before = fed.export_state(0)
    fed.begin_turn(0)
    fed.prefill(0, random_tokens(20, seed=1))
    parked = fed.park(0)
    arrival = Late(parked.kv_cache)
    undone = replace(parked, kv_cache=arrival.copy, arrival=arrival).rollback_turn()
    assert undone == replace(before, kv_cache=undone.kv_cache)
    fed.import_state(1, replace(undone, arrival=None))
    fed.import_state(2, before)
    assert torch.equal(go_on(fed, 1), go_on(fed, 2))


def test_memory_for_a_copy_is_dense() -> None:
    """Also of a lane whose keys and values lie apart, as where a target writes first."""
    lane = torch.zeros(3, 2, 5, 7, dtype=torch.bfloat16).movedim(2, 0)[1]
    copy = host_memory(lane)
    assert (copy.shape, copy.dtype, copy.is_contiguous()) == (lane.shape, lane.dtype, True)


def test_pinned_memory_is_counted_as_torch_rounds_it() -> None:
    assert [host_bytes(n, pinned=True) for n in (0, 1, 3, 4096, 4097, 264 << 20)] == [0, 1, 4, 4096, 8192, 512 << 20]
    assert host_bytes(4097, pinned=False) == 4097
