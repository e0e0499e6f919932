"""The slots that a turn overwrites in a session's cache, kept so that a failed turn leaves no trace."""

from __future__ import annotations

import torch

from trtstream.plugins.kv_cache import Vectors, stored_vectors
from trtstream.plugins.window import Window
from trtstream.runtime.host_copies import host_bytes

BLOCK = 32  # tokens saved ahead at once: one copy in 32 decode steps instead of one in each


class UndoLog:
    """Old contents of the slots that tokens from ``first`` on overwrite: each slot once, so at most a whole cache."""

    def __init__(self, window: Window, first: int) -> None:
        self._window = window
        self._saved_to = first
        # From this token on, every slot was already saved for an earlier token of the turn.
        self._save_until = max(first, window.sinks) + window.ring_slots
        self._saved: list[tuple[torch.Tensor, Vectors]] = []

    def save(self, cache: torch.Tensor, end: int) -> None:
        """Call before tokens up to ``end`` (exclusive) are written to ``cache``, a session's."""
        if self._saved_to >= min(end, self._save_until):
            return
        save_to = min(max(end, self._saved_to + BLOCK), self._save_until)
        slots = self._window.slots(torch.arange(self._saved_to, save_to, device=cache.device))
        self._saved.append((slots, stored_vectors(cache)[..., slots]))
        self._saved_to = save_to

    def to(self, device: torch.device) -> None:
        """Move the old contents to ``device``, where the cache has moved to: on a GPU's stream, as it was."""
        self._saved = [(slots.to(device, non_blocking=True), contents.to(device)) for slots, contents in self._saved]

    def restore(self, cache: torch.Tensor) -> None:
        """Write the old contents back to ``cache``."""
        for slots, contents in self._saved:
            stored_vectors(cache)[..., slots] = contents

    @property
    def nbytes(self) -> int:
        """Bytes that the old contents take."""
        parts = [part for _, contents in self._saved for part in (contents.numbers, contents.scales)]
        return sum(host_bytes(part.nbytes, part.is_pinned()) for part in parts if part is not None)
