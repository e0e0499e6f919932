"""What a turn overwrites in a session's cache, kept so that a failed turn leaves no trace."""

from __future__ import annotations

import torch

from trtstream.plugins.window import Window

BLOCK = 32  # tokens saved ahead at once: one copy in 32 decode steps instead of one in each


class UndoLog:
    """Old contents of the slots that tokens from ``first`` on overwrite: what the turn writes, at most a cache."""

    def __init__(self, window: Window, first: int) -> None:
        self._window = window
        self._saved_to = first
        # From here on a token's slot was already saved for an earlier token of the turn.
        self._enough = max(first, window.sinks) + window.ring_slots
        self._saved: list[tuple[torch.Tensor, torch.Tensor]] = []

    def save(self, cache: torch.Tensor, end: int) -> None:
        """Call before tokens up to ``end`` (exclusive) are written to ``cache`` [..., slots, head_dim]."""
        if self._saved_to >= min(end, self._enough):
            return
        save_to = min(max(end, self._saved_to + BLOCK), self._enough)
        slots = self._window.slots(torch.arange(self._saved_to, save_to, device=cache.device))
        self._saved.append((slots, cache[..., slots, :]))
        self._saved_to = save_to

    def restore(self, cache: torch.Tensor) -> None:
        """Put everything back."""
        for slots, contents in self._saved:
            cache[..., slots, :] = contents
