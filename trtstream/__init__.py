"""Endless LLM chats: attention sinks and a cyclic KV cache, from a checkpoint to a streaming Triton service."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from trtstream.runtime.llm import LLM

__version__ = version("trtstream")


def load(engine: str | Path) -> LLM:
    """Load an engine directory for use in this process. Raises TrtstreamError if it cannot run here."""
    from trtstream.runtime.llm import LLM

    return LLM(engine)
