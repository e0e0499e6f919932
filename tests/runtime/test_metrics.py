"""What a scheduler measures, compared with what its clients have seen."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from tests.runtime.clients import ENDLESS, ask, refused, started, wait_until
from trtstream.errors import TrtstreamError
from trtstream.runtime.llm import open_journal
from trtstream.runtime.loading import load_engine
from trtstream.runtime.metrics import METRICS
from trtstream.runtime.requests import TurnRequest
from trtstream.runtime.scheduler import Scheduler
from trtstream.runtime.scheduler_limits import SchedulerLimits
from trtstream.runtime.tier_costs import TierCosts


class Measured:
    """Takes measurements: the sums and counts by metric and label, and each value."""

    def __init__(self) -> None:
        self.sums: Counter[tuple[str, str]] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.values: defaultdict[str, list[float]] = defaultdict(list)

    def __call__(self, metric: str, value: float = 1.0, label: str = "") -> None:
        kind = METRICS[metric]
        assert kind.kind != "gauge"
        assert (not label) == (not kind.label)
        assert not kind.values or label in kind.values
        self.sums[metric, label] += value
        self.counts[metric, label] += 1
        self.values[metric].append(value)


@pytest.fixture
def measured() -> Measured:
    return Measured()


@pytest.fixture
def start(engine_folder, tokenizer, store, tmp_path, measured):
    schedulers = []

    def start(**limits) -> Scheduler:
        settings = SchedulerLimits(**limits)
        journal = open_journal(engine_folder, store, settings, tmp_path / "snapshots", measured)
        schedulers.append(Scheduler(load_engine(engine_folder), tokenizer, settings, journal, measured))
        return schedulers[-1]

    yield start
    for scheduler in schedulers:
        scheduler.close()


def test_turns_and_tokens(start, measured, monkeypatch):
    scheduler = start()
    options = {"session_key": "s", "max_tokens": 7, "ignore_eos": True}
    first = ask(scheduler, text="Hello", request_id="r", **options).last
    ask(scheduler, text="Hello", request_id="r", **options)
    assert refused(scheduler, session_key="s", session_tokens=1).code == "conflict"
    assert refused(scheduler, session_key="s", session_rewind=True, parent_turn="0" * 32).code == "not_found"
    with pytest.raises(TrtstreamError):
        scheduler.submit(TurnRequest(text="x", max_tokens=0), lambda output: None)
    with monkeypatch.context() as patch:
        patch.setattr(scheduler._engine, "decode_and_prefill", lambda *arguments: 1 / 0)
        assert refused(scheduler).code == "internal"
    running = started(scheduler, text="abc", **ENDLESS)
    gauges = scheduler.gauges()
    assert gauges.keys() == {
        (name, label) for name, one in METRICS.items() if one.kind == "gauge" for label in one.values or ("",)
    }
    assert (gauges["turns_running", ""], gauges["sessions", "engine"]) == (1, 2)
    running.turn.cancel()
    running.wait()
    assert scheduler.drain(60)
    ends = {label: count for (name, label), count in measured.sums.items() if name == "turns_total"}
    assert ends == {first.finish_reason: 1, "replayed": 1, "failed": 1, "cancelled": 1}
    codes = {label: count for (name, label), count in measured.sums.items() if name == "refusals_total"}
    assert codes == {"conflict": 1, "not_found": 1, "invalid": 1, "internal": 1}
    assert measured.sums["output_tokens_total", ""] == 7 + running.last.num_output_tokens
    assert measured.sums["input_tokens_total", ""] == 5 + 1 + 3
    assert len(measured.values["time_to_first_token_seconds"]) == 2
    assert len(measured.values["inter_token_seconds"]) == 2
    assert len(measured.values["commit_seconds"]) == 1
    assert all(seconds > 0 for name in measured.values if name.endswith("seconds") for seconds in measured.values[name])


def test_tiers(start, measured, tmp_path, monkeypatch):
    monkeypatch.setattr(TierCosts, "reading", lambda self, nbytes: 1e-9 * nbytes)
    monkeypatch.setattr(TierCosts, "feeding", lambda self, tokens: float(tokens))
    scheduler = start(max_idle_bytes=0)
    for key in range(5):  # in three lanes
        ask(scheduler, text="Hello, " * 10, session_key=key, max_tokens=2)
    scheduler.close()
    files = [*(tmp_path / "snapshots").iterdir()]
    assert scheduler.gauges()["sessions", "snapshot"] == len(files) == 5
    assert measured.sums["evictions_total", "engine"] == measured.sums["evictions_total", "host"] == 2
    assert measured.sums["snapshot_bytes_total", "written"] == sum(file.stat().st_size for file in files)
    restarted = start()
    for key in (3, 4):
        ask(restarted, text="x", session_key=key, max_tokens=1)
    assert measured.sums["restored_total", "snapshot"] == 2
    assert measured.sums["rebuilt_tokens_total", ""] == 0
    for file in files:
        file.unlink(missing_ok=True)
    ask(restarted, text="x", session_key=0, max_tokens=1)
    assert measured.sums["restored_total", "log"] == 1
    assert measured.sums["rebuilt_total", ""] == 1
    # All but the sinks and one more, which set the session's position.
    assert measured.sums["rebuilt_tokens_total", ""] == restarted._engine.receptive_field - 1
    wait_until(lambda: measured.sums["snapshot_bytes_total", "read"])
    for key in (1, 3, 3):  # 1 takes the lane of 3, which takes another one
        ask(restarted, text="x", session_key=key, max_tokens=1)
    tiers = {"new": 5, "snapshot": 2, "log": 2, "host": 1, "engine": 1}
    wait_until(lambda: all(measured.counts["time_to_first_token_seconds", tier] == tiers[tier] for tier in tiers))
