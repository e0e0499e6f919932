"""How many programs of a kernel a GPU is given."""

from __future__ import annotations

import torch


def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def num_splits(programs: int, tiles: int, most: int) -> int:
    """How many programs (a power of two) share what each of ``programs`` would do in ``tiles`` steps.

    ``most`` programs in all, unless there are more of them anyway, and a step or more for each.
    """
    wanted = max(min(most // programs, tiles), 1)
    return 1 << (wanted.bit_length() - 1)
