"""What a server measures of itself: the table from which its metrics and their documentation come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from trtstream.errors import TrtstreamError

PREFIX = "trtstream_"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True)
class Metric:
    """``label`` has one of ``values``, or where they are not listed, any of a few. ``buckets`` are a histogram's."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str = ""
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS = {
    "turns_running": Metric("gauge", "Turns that have a lane."),
    "turns_queued": Metric("gauge", "Turns that wait for a lane."),
    "sessions": Metric(
        "gauge",
        "Sessions whose cache is in the engine or in host memory, and snapshots.",
        "tier",
        ("engine", "host", "snapshot"),
    ),
    "turns_total": Metric(
        "counter",
        "Turns that have ended, and requests that got the answer of one again.",
        "end",
        ("stop", "length", "cancelled", "failed", "replayed"),
    ),
    "refusals_total": Metric("counter", "Requests that got an error, by its code.", "code"),
    "input_tokens_total": Metric("counter", "Tokens of the inputs of turns that have ended."),
    "output_tokens_total": Metric("counter", "Tokens of the answers of turns that have ended."),
    "time_to_first_token_seconds": Metric(
        "histogram",
        "From a turn's submission to its first token, by where its session's cache was; of a `new` session, nowhere.",
        "tier",
        ("new", "engine", "host", "snapshot", "log"),
        SECONDS,
    ),
    "inter_token_seconds": Metric(
        "histogram", "Between two tokens of an answer: the mean of each turn.", buckets=SECONDS
    ),
    "commit_seconds": Metric(
        "histogram", "From a turn's last token until the session store had the turn, or refused it.", buckets=SECONDS
    ),
    "snapshot_seconds": Metric(
        "histogram", "Writing a snapshot, or reading and checking one.", "direction", ("written", "read"), SECONDS
    ),
    "snapshot_bytes_total": Metric("counter", "Bytes of these snapshots.", "direction", ("written", "read")),
    "restored_total": Metric(
        "counter", "Sessions that were not in memory, by where they came from.", "tier", ("snapshot", "log")
    ),
    "rebuilt_total": Metric("counter", "Turns before which tokens of their session were fed again."),
    "rebuilt_tokens_total": Metric("counter", "These tokens."),
    "evictions_total": Metric(
        "counter",
        "Caches that left the engine for host memory, host memory, or the folder of snapshots.",
        "tier",
        ("engine", "host", "snapshot"),
    ),
    "restarts_total": Metric("counter", "How often `serve` has started Triton again."),
}


class Measure(Protocol):
    """Takes what the runtime measures, from any of its threads; so it must be quick, and may not raise."""

    def __call__(self, metric: str, value: float = 1.0, label: str = "") -> None:
        """Count ``value`` more of a counter, or observe it. ``metric`` is a key of `METRICS`."""


def code_of(error: Exception) -> str:
    """An error's code as its client gets it."""
    return (error.code or "invalid") if isinstance(error, TrtstreamError) else "internal"


def measure_nothing(metric: str, value: float = 1.0, label: str = "") -> None:
    """For those who do not ask."""
