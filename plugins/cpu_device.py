"""Whether this machine's CPU can run a ``cpu`` engine, and if not, why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtstream.machine import cpu_flags


def why_not_built_with(toolchain: Mapping[str, Any]) -> str | None:
    """Why an engine with this toolchain cannot run here, and the fix; None if it can."""
    missing = sorted(set(toolchain.get("instruction_sets", ())) - cpu_flags())
    return f"it needs a CPU with {', '.join(missing)}; build it again on this machine" if missing else None
