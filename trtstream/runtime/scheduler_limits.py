"""What one turn may take from a server, how the turns share it, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass

from trtstream.errors import TrtstreamError

RECALLED = "{recalled}"
"""What a ``recall_template`` has in the place of what is recalled."""


@dataclass(frozen=True)
class SchedulerLimits:
    """Limits of a `Scheduler`. None is no limit, except for ``max_idle_bytes``.

    ``max_queue_size`` turns may wait; ``max_sessions`` are remembered, of which ``max_idle_bytes`` (default: a quarter
    of this machine's memory) stay in host memory with their caches. A turn may ask for ``max_tokens_limit`` tokens and
    take ``turn_timeout`` seconds. While turns wait, one that has run for ``fair_share`` seconds gives its lane to the
    next and continues later. Where a prompt is fed next to running answers, it is fed in such chunks that their tokens
    come ``max_itl_ms`` milliseconds apart, or at twice the time that they take without it if that is longer.

    A turn that does not say how much of what has left the window it reads again gets up to ``recall`` tokens of it, in
    ``recall_template`` in place of `RECALLED`. Raises TrtstreamError for a template that has not one place for it.

    With a session store: a turn that has ended waits up to ``commit_timeout`` seconds until the store has it, and a
    session that is not continued for ``session_ttl`` seconds is deleted. Sessions beyond ``max_sessions`` and
    ``max_idle_bytes`` leave this process's memory, not the store; their snapshots take up to ``snapshot_bytes``.
    """

    max_queue_size: int = 256
    max_sessions: int = 4096
    max_idle_bytes: int | None = None
    max_tokens_limit: int | None = None
    turn_timeout: float | None = None
    fair_share: float = 4.0
    max_itl_ms: float = 50.0
    commit_timeout: float = 10.0
    session_ttl: float | None = None
    snapshot_bytes: int = 8 << 30
    recall: int = 0
    recall_template: str = "Earlier in this text: {recalled}\n"

    def __post_init__(self) -> None:
        if self.recall_template.count(RECALLED) != 1:
            raise TrtstreamError(
                f"the recall template (--recall-template) is {self.recall_template!r}; it must have {RECALLED} once"
            )


@dataclass(frozen=True)
class SchedulerStats:
    """``running`` turns have a lane, ``queued`` ones wait for one; ``sessions`` are all that a turn can continue."""

    running: int
    queued: int
    sessions: int
