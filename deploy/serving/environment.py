"""Environment variables through which ``trtstream serve`` configures the models it starts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace

from trtstream.runtime.scheduler_limits import SchedulerLimits

DRAIN_SOCKET = "TRTSTREAM_DRAIN_SOCKET"
"""Path of the Unix socket over which serve stops the model (see `trtstream.deploy.serving.drain`)."""

PUBLIC = "TRTSTREAM_PUBLIC"
"""``1`` where users of other machines can reach the service."""

LIMITS = "TRTSTREAM_LIMITS"
"""A JSON object: fields of `SchedulerLimits` that differ from `SERVICE_LIMITS`."""

SERVICE_LIMITS = SchedulerLimits(max_tokens_limit=1 << 20, turn_timeout=3600.0)
"""A service's limits. No turn of it is without a bound."""


def service_limits(environment: Mapping[str, str] = os.environ) -> SchedulerLimits:
    """The limits that ``environment`` sets."""
    return replace(SERVICE_LIMITS, **json.loads(environment.get(LIMITS, "{}")))
