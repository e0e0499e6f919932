"""Copies of sessions from a device to host memory, for which the calling thread does not wait.

On a GPU they go into pinned memory, asynchronously, on the stream that computes. So they read a cache as the calls
before them left it, and calls after them may overwrite it, as may a copy back: only a CPU that reads the bytes has to
wait (`Arrival.wait`). A stream of its own would gain little, as a session is copied because another one takes its lane
next: that one's first step would wait for the copy all the same. A snapshot that was read from its file is not in
pinned memory, and its import waits.

Torch keeps pinned memory that is let go of for the next copy, once the device is done with it. To pin it takes about as
long as a copy without it, so that the first copies are no faster, and later ones are. On the CPU, copies are complete
when they return. No GPU has run this yet.
"""

from __future__ import annotations

import torch


def host_memory(like: torch.Tensor) -> torch.Tensor:
    """Memory for a copy of ``like``: contiguous, uninitialized, and pinned if ``like`` is on a GPU."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)


def host_bytes(nbytes: int, pinned: bool) -> int:
    """Bytes that a tensor of ``nbytes`` takes in host memory: torch rounds pinned memory up to a power of two."""
    return 1 << (nbytes - 1).bit_length() if pinned and nbytes else nbytes


class Arrival:
    """When the copies from ``device`` that the current stream has been given so far are complete."""

    def __init__(self, device: torch.device) -> None:
        self._event = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(blocking=True)  # whoever waits leaves its core to others
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Return once they are, from any thread."""
        if self._event is not None:
            self._event.synchronize()

    def wait_on(self, device: torch.device) -> None:
        """Have what ``device`` is given from now on wait for them; on the CPU, `wait`."""
        if self._event is not None and device.type == "cuda":
            self._event.wait(torch.cuda.current_stream(device))
        else:
            self.wait()
