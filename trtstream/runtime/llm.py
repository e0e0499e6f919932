"""The Python API: an engine, its tokenizer and its scheduler in one object."""

from __future__ import annotations

import contextlib
import queue
import secrets
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtstream.engine_dir import TOKENIZER
from trtstream.errors import TrtstreamError
from trtstream.fast_tokenizer import load_fast_tokenizer
from trtstream.runtime.loading import load_engine
from trtstream.runtime.requests import TurnOutput, TurnRequest
from trtstream.runtime.scheduler import Scheduler
from trtstream.runtime.scheduler_limits import SchedulerLimits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENIZER_BYTES = 1 << 28
"""Of a file; the largest vocabularies take a sixth of it."""


class LLM:
    """An engine ready for use: ``with trtstream.load("engine") as llm: ...``. Methods may be called from any thread."""

    def __init__(self, engine: str | Path, limits: SchedulerLimits | None = None) -> None:
        folder = Path(engine)
        # In a thread that ends: OpenMP keeps a pool of threads for each thread that computes, and once there are more
        # threads than cores, it makes the scheduler's sleep where they should spin (1.5 times the latency).
        with ThreadPoolExecutor(1) as loading:
            self.engine = loading.submit(load_engine, folder).result()
        self.tokenizer = load_tokenizer(folder / TOKENIZER)
        self.scheduler = Scheduler(self.engine, self.tokenizer, limits or SchedulerLimits())

    def session(self) -> ChatSession:
        """A new conversation, which each turn continues."""
        return ChatSession(self)

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
    """A conversation in an `LLM`, one turn at a time. ``session_tokens`` counts the tokens it has been fed."""

    def __init__(self, llm: LLM) -> None:
        self._scheduler = llm.scheduler
        self._key = secrets.token_urlsafe()
        self.session_tokens = 0

    def generate(self, text: str | None = None, **options: Any) -> Generator[str, None, None]:
        """Yield the pieces of the next answer; as `LLM.generate` otherwise.

        A turn that is cancelled leaves what it has generated in the conversation, one that fails leaves nothing.
        """
        return _texts(self.stream(text, **options))

    def stream(self, text: str | None = None, **options: Any) -> Generator[TurnOutput, None, None]:
        """As `generate`, but yield a `TurnOutput` for each token."""
        request = TurnRequest(text=text, session_key=self._key, session_tokens=self.session_tokens, **options)
        return _outputs(self._scheduler, request, self._ended)

    def close(self) -> None:
        """Forget the conversation."""
        for _ in self.stream(session_end=True):
            pass

    def _ended(self, output: TurnOutput) -> None:
        self.session_tokens = output.session_tokens


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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The fast tokenizer saved in ``folder``, without truncation; None if there is no such folder.

    Raises TrtstreamError in one line if it is damaged.
    """
    if not folder.is_dir():
        return None
    for path in folder.iterdir():
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise TrtstreamError(f"{path} has more than {MAX_TOKENIZER_BYTES:,} bytes; rebuild the engine")
    return load_fast_tokenizer(folder, f"the tokenizer {folder}", "rebuild the engine")
