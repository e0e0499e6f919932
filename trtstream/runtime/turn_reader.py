"""From a request to a turn that can run: the session that it continues, and its tokens."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from trtstream.machine import release_freed_memory
from trtstream.runtime.continuation import find_continuation
from trtstream.runtime.prompt import first_prompt, next_prompt
from trtstream.runtime.requests import TurnRequest
from trtstream.runtime.session import Session, SessionStore
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.runtime.turn import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trtstream.runtime.journal import Journal

LONG_TEXT = 1 << 14  # characters; tokenizing a longer text takes more than some 10 ms


class TurnReader:
    """``changed`` guards ``sessions``. Without a ``journal`` only this process's sessions can be continued."""

    def __init__(
        self,
        engine: StreamingEngine,
        tokenizer: PreTrainedTokenizerBase | None,
        sessions: SessionStore,
        journal: Journal | None,
        changed: threading.Condition,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._sessions = sessions
        self._journal = journal
        self._changed = changed
        self._long_texts = ThreadPoolExecutor(1, "trtstream-long-texts")

    def run_elsewhere(self, request: TurnRequest, work: Callable[[], None]) -> bool:
        """Run ``work``, which reads the request, on another thread, if that takes long; else return False."""
        with contextlib.suppress(RuntimeError):  # closed just now: the turn is refused here
            if max(len(text or "") for text in (request.text, request.system, request.messages)) > LONG_TEXT:
                self._long_texts.submit(_run_and_free, work)
                return True
            if self._journal is not None and request.continues:
                self._journal.read(work)
                return True
        return False

    def close(self) -> None:
        self._long_texts.shutdown(wait=False)

    def read(self, turn: Turn) -> None:
        """Find what the turn continues, and tokenize its text unless it has its answer already.

        Raises TrtstreamError for a turn that this engine cannot take.
        """
        request = turn.request
        if request.continues:
            turn.request_hash = request.digest()
            if self._journal is not None:
                turn.continuation = self._journal.find(request, turn.request_hash)
            else:
                with self._changed:
                    turn.continuation = find_continuation(request, turn.request_hash, self._sessions)
        if turn.continuation.answered is None:
            self._prepare(turn)

    def _prepare(self, turn: Turn) -> None:
        request = turn.request
        build = self._engine.build
        ids: list[int] = []
        session = self._session(turn)
        if not request.has_input:
            session = session or Session(request.session_key, build.sink_token_length)
            prompt: list[int] = []
        elif session is None or session.turn is None:
            first = first_prompt(request, self._tokenizer, build)
            session = Session(request.session_key, first.sink_token_length)
            prompt = ids = first.token_ids
        else:
            ids = next_prompt(request, self._tokenizer, session.turn.pending)
            prompt = [session.turn.pending, *ids]
        end_ids = self._engine.model.eos_token_ids if request.end_id is None else (request.end_id,)
        end_ids = () if request.ignore_eos else end_ids
        turn.prepare(session, prompt, len(ids), end_ids)

    def _session(self, turn: Turn) -> Session | None:
        """The session that the turn continues, as of its parent; None if it begins one."""
        parent, request = turn.continuation.parent, turn.request
        if parent is None:
            return None
        with self._changed:
            session = self._sessions.at(request.session_key, parent)
            is_here = self._sessions.head(request.session_key) is session.turn
        if self._journal is not None and not is_here and request.has_input:
            session.state = self._journal.state(parent, self._engine.receptive_field)
        return session


def _run_and_free(work: Callable[[], None]) -> None:
    work()
    release_freed_memory()
