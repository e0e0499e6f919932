"""Latency and throughput of LLM turns, as NVIDIA's GenAI-Perf defines them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TurnTiming:
    """When one turn's request was sent and its tokens arrived: seconds of one monotonic clock.

    ``turn`` is 1 for the first turn of a session. A turn that failed has its ``error`` and no times but ``sent``.
    """

    turn: int
    sent: float
    first_token: float = 0.0
    last_token: float = 0.0
    output_tokens: int = 0
    error: str | None = None

    @property
    def time_to_first_token(self) -> float:
        return self.first_token - self.sent

    @property
    def request_latency(self) -> float:
        return self.last_token - self.sent

    @property
    def inter_token_latency(self) -> float | None:
        """Seconds per token after the first; None for a turn of one token, which has no gap."""
        if self.output_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.output_tokens - 1)


@dataclass(frozen=True)
class Distribution:
    """Milliseconds: the mean and the 50th, 90th and 99th percentile (linear interpolation between ranks)."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Summary:
    """Turns measured at one concurrency.

    ``duration_s`` runs from the first request sent to the last token received; throughputs are per second of it and
    count successful turns. Distributions are None where no turn has the quantity. ``time_to_first_token_ms_by_turn``
    has one entry per turn of a session.
    """

    concurrency: int
    requests: int
    errors: int
    duration_s: float
    request_throughput: float
    output_token_throughput: float
    time_to_first_token_ms: Distribution | None
    inter_token_latency_ms: Distribution | None
    request_latency_ms: Distribution | None
    time_to_first_token_ms_by_turn: list[Distribution | None]


def summarize(concurrency: int, timings: Sequence[TurnTiming]) -> Summary:
    """GenAI-Perf's report of ``timings``, both successes and failures."""
    done = [timing for timing in timings if timing.error is None]
    duration = max(timing.last_token for timing in done) - min(timing.sent for timing in done) if done else 0.0
    turns = sorted({timing.turn for timing in timings})
    gaps = [timing.inter_token_latency for timing in done]
    return Summary(
        concurrency=concurrency,
        requests=len(done),
        errors=len(timings) - len(done),
        duration_s=duration,
        request_throughput=len(done) / duration if duration else 0.0,
        output_token_throughput=sum(timing.output_tokens for timing in done) / duration if duration else 0.0,
        time_to_first_token_ms=distribution([timing.time_to_first_token for timing in done]),
        inter_token_latency_ms=distribution([gap for gap in gaps if gap is not None]),
        request_latency_ms=distribution([timing.request_latency for timing in done]),
        time_to_first_token_ms_by_turn=[
            distribution([timing.time_to_first_token for timing in done if timing.turn == turn]) for turn in turns
        ],
    )


def distribution(seconds: Sequence[float]) -> Distribution | None:
    """The distribution of ``seconds`` in milliseconds, or None of nothing."""
    import numpy as np

    if not seconds:
        return None
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99])
    return Distribution(*(float(value) * 1e3 for value in (np.mean(seconds), p50, p90, p99)))
