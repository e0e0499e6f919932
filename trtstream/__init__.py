"""Endless LLM chats: attention sinks and a cyclic KV cache, from a checkpoint to a streaming Triton service."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from trtstream.runtime.llm import LLM
    from trtstream.runtime.metrics import Measure
    from trtstream.runtime.scheduler_limits import SchedulerLimits

try:
    __version__ = version("trtstream")
except PackageNotFoundError:  # sources that were not installed, as `python -m benchmarks.gpu` takes them
    __version__ = "unknown"


def load(
    engine: str | Path,
    limits: SchedulerLimits | None = None,
    session_store: str | None = None,
    snapshot_dir: str | Path | None = None,
    measure: Measure | None = None,
) -> LLM:
    """Load an engine directory for use in this process. Raises TrtstreamError if it cannot run here.

    With a ``session_store``, sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE, sessions outlive the process.
    Caches of sessions that leave its memory are then kept in files in ``snapshot_dir``, if one is given.
    ``measure`` gets what there is to measure, as `trtstream.runtime.metrics` has it.
    """
    from trtstream.runtime.llm import LLM
    from trtstream.runtime.metrics import measure_nothing

    return LLM(engine, limits, session_store, snapshot_dir, measure or measure_nothing)
