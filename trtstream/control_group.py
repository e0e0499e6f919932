"""What this process's control group may use: the limits that a container has. Both versions of control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_limit(root: Path = ROOT, own: Path = OWN) -> float | None:
    """CPUs that it may use at a time; None if there is no limit."""
    limits = []
    for folder in _folders("cpu", root, own):
        quota, period = (
            _read(folder, "cpu.max") or _read(folder, "cpu.cfs_quota_us", "cpu.cfs_period_us") or ("max", "")
        )
        if quota not in ("max", "-1"):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit(root: Path = ROOT, own: Path = OWN) -> int | None:
    """Bytes of memory that it may use; None if there is no limit."""
    return min((limit for limit, _ in _memory(root, own)), default=None)


def free_memory(root: Path = ROOT, own: Path = OWN) -> int | None:
    """Bytes of memory that it may still take, cached files given back; None if there is no limit."""
    return min((limit - used for limit, used in _memory(root, own)), default=None)


def _memory(root: Path, own: Path) -> Iterator[tuple[int, int]]:
    """(Limit, bytes in use without cached files) of each group with a limit."""
    for folder in _folders("memory", root, own):
        files = _read(folder, "memory.max", "memory.current") or _read(
            folder, "memory.limit_in_bytes", "memory.usage_in_bytes"
        )
        statistics = _read(folder, "memory.stat")
        # Version 1 says "no limit" by a number that no machine has.
        if files is None or statistics is None or files[0] == "max" or int(files[0]) >= 1 << 60:
            continue
        counts = dict(zip(statistics[::2], statistics[1::2], strict=True))
        cached = int(counts.get("total_inactive_file", counts.get("inactive_file", "0")))
        yield int(files[0]), int(files[1]) - cached


def _folders(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """The folders of this process's group and of those around it. A container may see its own group as the root."""
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        group = PurePosixPath(path)
        for folder in (group, *group.parents):
            yield base / folder.relative_to("/")


def _read(folder: Path, *names: str) -> list[str] | None:
    """The words in the files ``names``; None if one is missing."""
    try:
        return [word for name in names for word in (folder / name).read_text().split()]
    except OSError:
        return None
