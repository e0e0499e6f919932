"""Sessions' caches in files: a tier below host memory. Losing any of them costs time, and never a session."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from trtstream.atomic_file import PART
from trtstream.errors import TrtstreamError
from trtstream.runtime.metrics import Measure, measure_nothing
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.tier_costs import TierCosts
from trtstream.sessions.records import ID_BYTES

SUFFIX = ".snapshot"
ENGINE_DIGITS = 12  # of an engine's checksum, in a file's name
WAITING = 2  # states that may wait for the disk, as each holds memory
PART_SECONDS = 60.0  # without a change, after which an unfinished file's writer is taken for dead

logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class _File:
    """``used_at`` is when it was used last, in seconds since 1970."""

    used_at: float
    path: Path
    turn: bytes
    nbytes: int


class Snapshots:
    """A folder with a file for each of some turns: the session's state after it, as the engine ``engine`` had it.

    ``engine`` is the checksum of its config.json. The files take at most ``max_bytes``; the least recently used leave.
    Several processes may share a folder. Nothing here but `put` may be called on the scheduler's thread.
    """

    def __init__(self, folder: Path, max_bytes: int, engine: str, measure: Measure = measure_nothing) -> None:
        self._measure = measure
        self.costs = TierCosts()
        self._folder = folder
        self._max_bytes = max_bytes
        self._engine = engine
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise TrtstreamError(f"the folder for snapshots {folder} cannot be made ({error.strerror})") from None
        self._jobs: queue.Queue[tuple[bytes, SessionState] | None] = queue.Queue(WAITING)
        self._writer = threading.Thread(target=self._write, name="trtstream-snapshot-writer", daemon=True)
        self._writer.start()

    def put(self, turn: bytes, state: SessionState) -> bool:
        """Have the session's state after ``turn`` written; False, with nothing done, while the disk does not follow."""
        try:
            self._jobs.put_nowait((turn, state))
        except queue.Full:
            logger.warning("a snapshot is left out: %d others wait for the disk", WAITING)
            return False
        return True

    def close(self, last: Iterable[tuple[bytes, SessionState]], seconds: float) -> None:
        """Write ``last`` too, as far as ``seconds`` suffice, and stop."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(queue.Full):
            for job in itertools.chain(last, [None]):
                self._jobs.put(job, timeout=max(deadline - time.monotonic(), 0.0))
            self._writer.join(max(deadline - time.monotonic(), 0.0))

    def sizes(self) -> dict[bytes, int]:
        """The turns that this engine has snapshots of, and the bytes of each."""
        return {file.turn: file.nbytes for file in self._files() if file.path == self._path(file.turn)}

    def load(self, turn: bytes) -> SessionState | None:
        """The state after ``turn``. None without a snapshot; one that is damaged or something else's is removed."""
        path = self._path(turn)
        started = time.perf_counter()
        try:
            state, _ = SessionState.load(path, self._identity(turn))
        except TrtstreamError as error:
            if path.exists():
                logger.warning("a snapshot is removed and the next tier is used: %s", error)
                self._remove(path)
            return None
        assert state.kv_cache is not None
        seconds = time.perf_counter() - started
        self.costs.was_read(state.kv_cache.nbytes, seconds)
        self._measure("snapshot_seconds", seconds, "read")
        self._measure("snapshot_bytes_total", state.kv_cache.nbytes, "read")
        with contextlib.suppress(OSError):
            os.utime(path)  # used just now
        return state

    def sweep(self, existing: Callable[[Collection[bytes]], Collection[bytes]]) -> None:
        """Remove snapshots of turns that do not exist any longer, and what writers that were killed have left.

        ``existing`` says which of some turns there are. Raises what it raises.
        """
        files = self._files()
        kept = existing({file.turn for file in files})
        for file in files:
            if file.turn not in kept:
                self._remove(file.path)
        for path in self._folder.glob(f".*{SUFFIX}.*{PART}"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > PART_SECONDS:
                    self._remove(path)

    def _write(self) -> None:
        while (job := self._jobs.get()) is not None:
            turn, state = job
            del job  # of its memory nothing stays while this waits for the next
            try:
                self._save(turn, state)
            except (TrtstreamError, OSError) as error:
                logger.warning("a snapshot is left out: %s", error)
            except Exception:
                logger.exception("a snapshot is left out")
            del state

    def _save(self, turn: bytes, state: SessionState) -> None:
        path = self._path(turn)
        assert state.kv_cache is not None
        self._make_room(state.kv_cache.nbytes + 4 * len(state.token_ids) + (1 << 12))
        started = time.perf_counter()
        state.save(path, self._identity(turn))
        self._measure("snapshot_seconds", time.perf_counter() - started, "written")
        self._measure("snapshot_bytes_total", path.stat().st_size, "written")

    def _make_room(self, nbytes: int) -> None:
        """Remove the least recently used snapshots until there is room for one of ``nbytes``."""
        if nbytes > self._max_bytes:
            raise TrtstreamError(
                f"it takes {nbytes:,} bytes, and all of them may take {self._max_bytes:,} (--snapshot-bytes)"
            )
        files = self._files()
        excess = sum(file.nbytes for file in files) + nbytes - self._max_bytes
        for file in sorted(files):
            if excess <= 0:
                return
            self._remove(file.path)
            self._measure("evictions_total", label="snapshot")
            excess -= file.nbytes

    def _files(self) -> list[_File]:
        """Those of all engines."""
        files = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                digits = entry.name.removesuffix(SUFFIX).rpartition("-")[2]
                if entry.name.endswith(SUFFIX) and len(digits) == 2 * ID_BYTES:
                    with contextlib.suppress(OSError, ValueError):
                        stat = entry.stat()
                        files.append(_File(stat.st_mtime, Path(entry.path), bytes.fromhex(digits), stat.st_size))
        return files

    def _path(self, turn: bytes) -> Path:
        return self._folder / f"{self._engine[:ENGINE_DIGITS]}-{turn.hex()}{SUFFIX}"

    def _identity(self, turn: bytes) -> dict[str, str]:
        return {"engine": self._engine, "turn": turn.hex()}

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the snapshot %s cannot be removed (%s)", path, error.strerror)
