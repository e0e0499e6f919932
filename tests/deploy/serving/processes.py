"""The processes of a served model, as the kernel shows them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest


def family(process_id: int) -> set[int]:
    """Ids of a process's living descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if after_name[0] != "Z":
            parents[int(stat.parent.name)] = int(after_name[1])
    found: set[int] = set()
    while new := {child for child, parent in parents.items() if parent in found | {process_id}} - found:
        found |= new
    return found


def alive(process_ids: set[int]) -> set[int]:
    living = set()
    for process_id in process_ids:
        try:
            if Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                living.add(process_id)
        except OSError:
            pass
    return living


def wait_for_death(process_ids: set[int]) -> None:
    for _ in range(150):
        if not alive(process_ids):
            return
        time.sleep(0.1)
    pytest.fail(f"still alive: {alive(process_ids)}")


def kill_whole(server: subprocess.Popen[str]) -> None:
    """Kill a server and all its descendants with SIGKILL, and wait for their end."""
    descendants = family(server.pid)
    for process_id in (server.pid, *descendants):
        with suppress(ProcessLookupError):  # it has ended, or ends with its parent
            os.kill(process_id, signal.SIGKILL)
    wait_for_death(descendants)
    server.wait()


def of_kind(process_id: int, name: str) -> int:
    """The one descendant of a process whose executable's name has ``name`` in it."""
    (found,) = (child for child in family(process_id) if name in os.path.basename(os.readlink(f"/proc/{child}/exe")))
    return found
