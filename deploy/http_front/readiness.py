"""What ``trtstream serve`` knows about its service, for whatever answers probes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """``READY`` takes turns. ``HUNG`` and ``FAILED`` last until the restart begins, or until serve exits."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    RESTARTING = "restarting"
    HUNG = "hung"
    FAILED = "failed"


@dataclass
class Readiness:
    """The state of the service. The supervisor sets it; any thread may read it."""

    state: State = State.STARTING

    @property
    def is_ready(self) -> bool:
        return self.state is State.READY
