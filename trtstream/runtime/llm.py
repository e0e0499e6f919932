"""The Python API: an engine, its tokenizer and its scheduler in one object."""

from __future__ import annotations

import contextlib
import queue
import secrets
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtstream.engine_dir import TOKENIZER, read_engine
from trtstream.errors import TrtstreamError
from trtstream.runtime.loading import load_engine
from trtstream.runtime.metrics import Measure, measure_nothing
from trtstream.runtime.requests import SessionKey, TurnOutput, TurnRequest
from trtstream.runtime.scheduler import Scheduler
from trtstream.runtime.scheduler_limits import SchedulerLimits
from trtstream.runtime.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from trtstream.runtime.journal import Journal


class LLM:
    """An engine ready for use: ``with trtstream.load("engine") as llm: ...``. Methods may be called from any thread."""

    def __init__(
        self,
        engine: str | Path,
        limits: SchedulerLimits | None = None,
        session_store: str | None = None,
        snapshot_dir: str | Path | None = None,
        measure: Measure = measure_nothing,
    ) -> None:
        folder = Path(engine)
        limits = limits or SchedulerLimits()
        if session_store is None and snapshot_dir is not None:
            raise TrtstreamError("snapshots need a session store: without one, sessions end with the process")
        if session_store is None and limits.recall:
            raise TrtstreamError("recall needs a session store, which has the earlier turns")
        journal = None if session_store is None else open_journal(folder, session_store, limits, snapshot_dir, measure)
        try:
            self._load(folder, limits, journal, measure)
        except BaseException:
            if journal is not None:
                journal.write_snapshots((), 0.0)
                journal.close()
            raise

    def _load(self, folder: Path, limits: SchedulerLimits, journal: Journal | None, measure: Measure) -> None:
        # In a thread that ends: OpenMP keeps a pool of threads for each thread that computes, and once there are more
        # threads than cores, it makes the scheduler's sleep where they should spin (1.5 times the latency).
        with ThreadPoolExecutor(1) as loading:
            self.engine = loading.submit(load_engine, folder).result()
        self.tokenizer = load_tokenizer(folder / TOKENIZER)
        self.scheduler = Scheduler(self.engine, self.tokenizer, limits, journal, measure)

    def session(self, key: SessionKey | None = None) -> ChatSession:
        """A new conversation, which each turn continues; with a ``key``, the one of this name if there is one."""
        return ChatSession(self, key)

    def generate(self, text: str | None = None, **options: Any) -> Generator[str, None, None]:
        """Yield the pieces of one answer; nothing is remembered. ``options`` are `TurnRequest`'s other fields.

        Closing the generator early cancels the turn. Raises TrtstreamError for a turn that cannot be run or fails.
        """
        return _texts(self.stream(text, **options))

    def stream(self, text: str | None = None, **options: Any) -> Generator[TurnOutput, None, None]:
        """As `generate`, but yield a `TurnOutput` for each token."""
        return _outputs(self.scheduler, TurnRequest(text=text, **options))

    def close(self) -> None:
        """Stop; turns that are running fail."""
        self.scheduler.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ChatSession:
    """A conversation in an `LLM`, one turn at a time.

    ``key`` is its name. ``session_tokens`` counts the tokens it has been fed, and ``turn_id`` names its last turn; both
    are None in a conversation that was come back to, until a turn has ended.
    """

    def __init__(self, llm: LLM, key: SessionKey | None) -> None:
        self._scheduler = llm.scheduler
        self.key = secrets.token_urlsafe() if key is None else key
        self.session_tokens: int | None = 0 if key is None else None
        self.turn_id: str | None = None

    def generate(self, text: str | None = None, **options: Any) -> Generator[str, None, None]:
        """Yield the pieces of the next answer; as `LLM.generate` otherwise.

        A turn that is cancelled leaves what it has generated in the conversation, one that fails leaves nothing.
        """
        return _texts(self.stream(text, **options))

    def stream(self, text: str | None = None, **options: Any) -> Generator[TurnOutput, None, None]:
        """As `generate`, but yield a `TurnOutput` for each token."""
        if not options.get("session_rewind"):
            options = {"session_tokens": self.session_tokens, **options}
        request = TurnRequest(text=text, session_key=self.key, **options)
        return _outputs(self._scheduler, request, self._ended)

    def close(self) -> None:
        """Forget the conversation."""
        for _ in self.stream(session_end=True):
            pass

    def _ended(self, output: TurnOutput) -> None:
        self.session_tokens = output.session_tokens
        self.turn_id = output.turn_id or self.turn_id


def open_journal(
    engine: Path,
    session_store: str,
    limits: SchedulerLimits,
    snapshot_dir: str | Path | None = None,
    measure: Measure = measure_nothing,
) -> Journal:
    """The session store at this URL, for the checkpoint that ``engine`` was built from, and that engine's snapshots."""
    from trtstream.runtime.journal import Journal  # here, as only those who ask for it need a database
    from trtstream.runtime.snapshots import Snapshots
    from trtstream.sessions.turn_log import TurnLog

    config = read_engine(engine)
    if snapshot_dir is None:
        snapshots = None
    else:
        snapshots = Snapshots(Path(snapshot_dir), limits.snapshot_bytes, config.to_dict()["checksum"], measure)
    log = TurnLog(session_store, limits.session_ttl)
    return Journal(log, bytes.fromhex(config.fingerprint), limits.commit_timeout, snapshots, measure)


def _outputs(
    scheduler: Scheduler, request: TurnRequest, on_end: Callable[[TurnOutput], None] | None = None
) -> Generator[TurnOutput, None, None]:
    outputs: queue.SimpleQueue[TurnOutput | Exception] = queue.SimpleQueue()
    turn = scheduler.submit(request, outputs.put)
    running = True

    def take() -> TurnOutput:
        nonlocal running
        output = outputs.get()
        if isinstance(output, Exception):
            running = False
            raise output
        if output.finish_reason:
            running = False
            if on_end is not None:
                on_end(output)
        return output

    try:
        while running:
            yield take()
    finally:  # also where the caller closes the generator or presses Ctrl-C: no turn stays behind
        turn.cancel()
        while running:
            take()


def _texts(outputs: Generator[TurnOutput, None, None]) -> Generator[str, None, None]:
    with contextlib.closing(outputs):
        for output in outputs:
            if output.text:
                yield output.text
