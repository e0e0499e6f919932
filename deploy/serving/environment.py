"""Environment variables through which ``trtstream serve`` configures the models it starts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from trtstream.runtime.scheduler_limits import SchedulerLimits

CONTROL_SOCKET = "TRTSTREAM_CONTROL_SOCKET"
"""Path of the Unix socket between serve and the model (see `trtstream.deploy.serving.control`)."""

PUBLIC = "TRTSTREAM_PUBLIC"
"""``1`` where users of other machines can reach the service."""

LIMITS = "TRTSTREAM_LIMITS"
"""A JSON object: fields of `SchedulerLimits` that differ from `SERVICE_LIMITS`."""

SESSION_STORE = "TRTSTREAM_SESSION_STORE"
"""The URL of the session store, which may have a password. Without one sessions end with the model's process."""

SNAPSHOT_DIR = "TRTSTREAM_SNAPSHOT_DIR"
"""The folder for snapshots of sessions. Without one there are none."""

RESTARTS = "TRTSTREAM_RESTARTS"
"""How often serve has started Triton again."""

SERVICE_LIMITS = SchedulerLimits(max_tokens_limit=1 << 20, turn_timeout=3600.0)
"""A service's limits. No turn of it is without a bound."""


@dataclass(frozen=True)
class ModelOptions:
    """What serve's options say to a model. One that serve did not start has the defaults."""

    public: bool = False
    limits: SchedulerLimits = SERVICE_LIMITS
    session_store: str | None = None
    snapshot_dir: str | None = None

    def variables(self) -> dict[str, str]:
        places = {SESSION_STORE: self.session_store, SNAPSHOT_DIR: self.snapshot_dir}
        return {
            PUBLIC: str(int(self.public)),
            LIMITS: json.dumps(asdict(self.limits)),
            **{name: place for name, place in places.items() if place is not None},
        }

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> ModelOptions:
        limits = replace(SERVICE_LIMITS, **json.loads(variables.get(LIMITS, "{}")))
        store, snapshots = (variables.get(name) or None for name in (SESSION_STORE, SNAPSHOT_DIR))
        return cls(variables.get(PUBLIC) == "1", limits, store, snapshots)
