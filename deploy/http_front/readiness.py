"""What ``trtstream serve`` knows about its service, for whatever answers probes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """``READY`` takes turns, and so does ``LEAVING``, while others are still to notice that the service will drain.

    ``HUNG`` and ``FAILED`` last until the restart begins, or until serve exits.
    """

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
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

    @property
    def takes_turns(self) -> bool:
        return self.state in (State.READY, State.LEAVING)
