"""The session store as the scheduler uses it: threads that read and write, so that no step waits for a database."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from trtstream import failpoint
from trtstream.errors import TrtstreamError
from trtstream.runtime.continuation import Continuation, find_continuation
from trtstream.runtime.metrics import Measure, measure_nothing
from trtstream.runtime.requests import TurnRequest
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.snapshots import Snapshots
from trtstream.runtime.tier_costs import TierCosts
from trtstream.runtime.tiers import Restored, restore
from trtstream.sessions.recall import Found, Question, Recall, Vocabulary
from trtstream.sessions.records import Commit, TurnRecord, unknown_outcome
from trtstream.sessions.turn_log import TurnLog

READERS = 2  # read at once, and as many more as are making an index
THREADS = 8
GROUP = 64  # turns in one transaction
SWEEP_SECONDS = 600.0
CACHE_SWEEP_SECONDS = 60.0
CLOSE_SECONDS = 2.0  # for a commit beyond its timeout

logger = logging.getLogger(__name__)

OnCommit = Callable[[TrtstreamError | None], None]


@dataclass
class _Job:
    commit: Commit
    done: OnCommit
    queued_at: float = field(default_factory=time.monotonic)


class Journal:
    """A `TurnLog` behind threads of its own, for engines of the checkpoint with this ``fingerprint`` (32 bytes)."""

    def __init__(
        self,
        log: TurnLog,
        fingerprint: bytes,
        commit_timeout: float,
        snapshots: Snapshots | None = None,
        measure: Measure = measure_nothing,
    ) -> None:
        self.fingerprint = fingerprint
        self.commit_timeout = commit_timeout
        self.snapshots = snapshots
        self._measure = measure
        self.costs = TierCosts() if snapshots is None else snapshots.costs
        self._log = log
        self._recall = Recall(log)
        self._readers = ThreadPoolExecutor(THREADS, "trtstream-session-reader")
        self._places = threading.Semaphore(READERS)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="trtstream-session-writer", daemon=True)
        self._writer.start()

    def read(self, work: Callable[[], None]) -> None:
        """Run ``work`` on a thread that may wait for the database."""
        self._readers.submit(self._read, work)

    def _read(self, work: Callable[[], None]) -> None:
        with self._places:
            work()

    def find(self, request: TurnRequest, request_hash: bytes) -> Continuation:
        """As `find_continuation`, in the database. Raises TrtstreamError for another checkpoint's turns too."""
        with _for_clients():
            continuation = find_continuation(request, request_hash, self._log)
        parent = continuation.parent
        if parent is not None and parent.fingerprint != self.fingerprint:
            raise TrtstreamError(
                f"the conversation is one with another checkpoint ({parent.fingerprint.hex()[:12]}, and this engine's "
                f"is {self.fingerprint.hex()[:12]}); serve an engine that was built from that one",
                code="conflict",
            )
        return continuation

    def furthest(self, tenant: str, transcripts: Sequence[bytes]) -> list[TurnRecord]:
        """This checkpoint's turns that end with the first of ``transcripts`` with which any ends, the latest first."""
        with _for_clients():
            return self._log.furthest(tenant, self.fingerprint, transcripts)

    def restore(self, turn: TurnRecord, receptive_field: int) -> Restored:
        """What an engine with this receptive field (tokens) needs to continue ``turn``. Reads database and files."""
        with _for_clients():
            restored = restore(turn, receptive_field, self._log, self.snapshots, self.costs)
            self._measure("restored_total", label="log" if restored.state.kv_cache is None else "snapshot")
            return restored

    def recall(self, key: Hashable, turn: TurnRecord, question: Question, vocabulary: Vocabulary) -> list[Found]:
        """The spans that a turn of the conversation ``key`` behind ``turn`` should read again.

        A long conversation's first index takes seconds. Another turn has this thread's place meanwhile.
        """
        self._places.release()
        try:
            with _for_clients():
                return self._recall.find(key, turn, question, vocabulary)
        finally:
            self._places.acquire()

    def commit(self, commit: Commit, done: OnCommit) -> None:
        """Have the writer commit; ``done`` gets None or the error, on the writer's thread."""
        self._jobs.put(_Job(commit, done))

    def num_snapshots(self) -> int:
        """How many there are; reads their folder."""
        return 0 if self.snapshots is None else len(self.snapshots.sizes())

    def write_snapshots(self, last: Iterable[tuple[bytes, SessionState]], seconds: float) -> None:
        """Write these turns' states too, as far as ``seconds`` suffice; no snapshot is written after that."""
        if self.snapshots is not None:
            self.snapshots.close(last, seconds)

    def close(self) -> None:
        """Wait for the commits that were asked for, within their timeout, and close the log."""
        self._jobs.put(None)
        self._writer.join(self.commit_timeout + CLOSE_SECONDS)
        self._readers.shutdown(wait=False)
        self._log.close()

    def _write(self) -> None:
        swept_at = caches_swept_at = float("-inf")
        while True:
            if time.monotonic() - swept_at > SWEEP_SECONDS:
                self.read(self._sweep)
                swept_at = time.monotonic()
            if time.monotonic() - caches_swept_at > CACHE_SWEEP_SECONDS:
                self.read(self._sweep_caches)
                caches_swept_at = time.monotonic()
            jobs = self._next_jobs()
            if None in jobs:
                self._commit([job for job in jobs if job is not None])
                return
            self._commit([job for job in jobs if job is not None])

    def _next_jobs(self) -> list[_Job | None]:
        """All that wait, at most a group; none if nothing came for a while."""
        jobs: list[_Job | None] = []
        try:
            jobs.append(self._jobs.get(timeout=CACHE_SWEEP_SECONDS))
            while len(jobs) < GROUP and jobs[-1] is not None:
                jobs.append(self._jobs.get_nowait())
        except queue.Empty:
            pass
        return jobs

    def _commit(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        timeout = min(job.queued_at for job in jobs) + self.commit_timeout - time.monotonic()
        outcomes: list[TrtstreamError | None]
        failpoint.reach("before-commit")
        try:
            outcomes = self._log.commit([job.commit for job in jobs], max(timeout, 0.0))
        except Exception:
            logger.exception("turns could not be committed")
            outcomes = [unknown_outcome(job.commit.key) for job in jobs]
        failpoint.reach("after-commit")
        for job, outcome in zip(jobs, outcomes, strict=True):
            self._measure("commit_seconds", time.monotonic() - job.queued_at)
            if job.commit.turn is None and outcome is None:
                self._recall.drop(job.commit.key)
            job.done(None if outcome is None else _for_client(outcome))
        if any(job.commit.turn is None for job in jobs):
            self.read(self._sweep_caches)

    def _sweep(self) -> None:
        try:
            self._log.sweep()
        except TrtstreamError as error:
            logger.warning("expired sessions were not deleted: %s", error)
        except Exception:
            logger.exception("expired sessions were not deleted")

    def _sweep_caches(self) -> None:
        try:
            self._recall.sweep(self._log.existing)
            if self.snapshots is not None:
                self.snapshots.sweep(self._log.existing)
        except TrtstreamError as error:
            logger.warning("snapshots and indexes of deleted sessions were not removed: %s", error)
        except Exception:
            logger.exception("snapshots and indexes of deleted sessions were not removed")


def _for_client(error: TrtstreamError) -> TrtstreamError:
    """The error as a client gets it: where the store is and what its driver says are for the log."""
    if error.code not in ("unavailable", "internal"):
        return error
    logger.warning("%s", error)
    what = "does not answer; try again later" if error.code == "unavailable" else "failed; the server's log says more"
    return TrtstreamError(f"the session store {what}", code=error.code)


@contextmanager
def _for_clients() -> Iterator[None]:
    try:
        yield
    except TrtstreamError as error:
        raise _for_client(error) from error
