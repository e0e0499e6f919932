"""From a request to a turn that can run: the session that it continues, and its tokens."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from trtstream.errors import TrtstreamError
from trtstream.machine import release_freed_memory
from trtstream.runtime.continuation import Continuation, find_continuation
from trtstream.runtime.conversation import Session
from trtstream.runtime.messages import Message, read_messages
from trtstream.runtime.prompt import LaterPrompt, first_prompt, next_prompt, rest_of_messages, shows_history
from trtstream.runtime.recalling import Block, Recalling
from trtstream.runtime.requests import TurnRequest
from trtstream.runtime.scheduler_limits import SchedulerLimits
from trtstream.runtime.session import SessionStore
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.runtime.transcript import EMPTY, transcript_after, transcript_with
from trtstream.runtime.turn import Turn
from trtstream.sessions.records import Recalled, TurnRecord

if TYPE_CHECKING:
    from trtstream.runtime.journal import Journal
    from trtstream.runtime.tokenizer import Tokenizer

READ_SECONDS = 10.0  # until a reader of the session store is free
LONG_TEXT = 1 << 14  # characters; tokenizing a longer text takes more than some 10 ms


class TurnReader:
    """``changed`` guards ``sessions``. Without a ``journal`` only this process's sessions can be continued."""

    def __init__(
        self,
        engine: StreamingEngine,
        tokenizer: Tokenizer | None,
        sessions: SessionStore,
        journal: Journal | None,
        changed: threading.Condition,
        limits: SchedulerLimits,
    ) -> None:
        self._limits = limits
        self._recalling: Recalling | None = None
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
            if self._journal is not None and (request.continues or request.messages is not None):
                self._journal.read(work)
                return True
        return False

    def run_in_store(self, work: Callable[[], None]) -> None:
        """Run ``work``, which waits for the session store, on another thread."""
        assert self._journal is not None, "there is a store to wait for"
        self._journal.read(work)

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
                _check_wait(turn)
                turn.continuation = self._journal.find(request, turn.request_hash)
            else:
                with self._changed:
                    turn.continuation = find_continuation(request, turn.request_hash, self._sessions)
        if turn.continuation.answered is not None:
            return
        if request.messages is not None and self._journal is not None:
            self._prepare_messages(turn, read_messages(request.messages), self._journal)
        else:
            self._prepare(turn)

    def restore(self, turn: Turn) -> None:
        """Read the state of the session of a turn that was read before, as no lane has a copy of it any longer."""
        assert self._journal is not None, "without a store nothing could be read"
        assert turn.session.turn is not None, "a session that has no turn is new"
        self._restore(turn.session, turn.session.turn, self._journal)

    def _prepare(self, turn: Turn) -> None:
        request = turn.request
        session, parent = self._session(turn), turn.continuation.parent
        turn.transcript = transcript_with(request, EMPTY if parent is None else parent.transcript)
        if not request.has_input:
            session = session or Session(turn.key, self._engine.build.sink_token_length)
            self._begin(turn, session, [], [])
        elif session is None or session.turn is None:
            self._begin_whole(turn)
        else:
            assert parent is not None, "a session that has a turn continues it"
            block = self._block(turn, parent)
            self._go_on(turn, session, next_prompt(request, self._tokenizer, session.turn.pending, block), block)

    def _prepare_messages(self, turn: Turn, messages: list[Message], journal: Journal) -> None:
        """Continue the turn that has seen most of ``messages``, if there is one."""
        request, has_system = turn.request, messages[0].role == "system"
        turn.request_hash = request.digest()
        turn.system, turn.text = messages[0].content if has_system else None, messages[-1].content
        transcripts = [transcript_after(EMPTY, messages[:1])]
        for message in messages[1:]:
            transcripts.append(transcript_after(transcripts[-1], [message]))
        turn.transcript = transcripts[-1]
        parents: list[TurnRecord] = []
        if shows_history(self._tokenizer, has_system):
            _check_wait(turn)
            answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
            parents = journal.furthest(request.tenant, [transcripts[number] for number in reversed(answers)])
            sinks = self._engine.build.max_sink_token_length
            parents = [parent for parent in parents if parent.sink_token_length <= sinks]
        session = None
        if not request.session_end:
            with self._changed:
                session = self._sessions.claim_idle([parent.id for parent in parents])
                turn.key = turn.id if session is None else session.key
                if session is None:
                    self._sessions.claim(turn.key)
        if not parents:
            self._begin_whole(turn)
            return
        if session is None:
            session = Session(turn.key, parents[0].sink_token_length, parents[0].answer_alone())
            self._restore_unless_copied(session, parents[0], journal)
        assert session.turn is not None
        parent = session.turn
        turn.continuation = Continuation(parent)
        assert parent.transcript is not None
        rest = messages[transcripts.index(parent.transcript) + 1 :]
        block = self._block(turn, next(found for found in parents if found.id == parent.id))
        self._go_on(turn, session, rest_of_messages(rest, self._tokenizer, parent.pending, has_system, block), block)

    def _begin_whole(self, turn: Turn) -> None:
        first = first_prompt(turn.request, self._tokenizer, self._engine.build)
        self._begin(turn, Session(turn.key, first.sink_token_length), [], first.token_ids)

    def _block(self, turn: Turn, parent: TurnRecord) -> Block | None:
        """What the turn reads again of ``parent``, which is whole, and of the turns before it."""
        request = turn.request
        count = self._limits.recall if request.recall is None else request.recall
        if not count or not request.has_input:
            return None
        if self._journal is None or self._tokenizer is None:
            lacking = "a session store, which has the earlier turns" if self._journal is None else "a tokenizer"
            raise TrtstreamError(f"recall needs {lacking}; leave recall out, or serve with one")
        if self._recalling is None:
            vocab_size, ring = self._engine.model.vocab_size, self._engine.build.ring
            self._recalling = Recalling(self._tokenizer, vocab_size, ring, self._limits.recall_template)
        text = turn.text
        if text is None:
            text = self._tokenizer.decode([*(request.input_ids or ())], skip_special_tokens=True)
        question = self._recalling.question(
            text, parent.position, parent.sink_token_length, count, before=parent.prompt or ""
        )
        if question is None:
            return None
        key = parent.root if turn.key is None else turn.key
        return self._recalling.block(self._journal.recall(key, parent, question, self._recalling.vocabulary))

    def _go_on(self, turn: Turn, session: Session, prompt: LaterPrompt, block: Block | None) -> None:
        """Begin a turn behind the session's last one."""
        assert session.turn is not None
        if block is not None and prompt.recalled:
            first = session.position + 1 + prompt.recalled.start  # behind the pending token
            spans = tuple((found.turn, found.span.first, found.span.end) for found in block.found)
            turn.recalled = Recalled(first, first + len(prompt.recalled), spans)
        self._begin(turn, session, [session.turn.pending], prompt.token_ids)

    def _begin(self, turn: Turn, session: Session, pending: list[int], ids: list[int]) -> None:
        request = turn.request
        end_ids = self._engine.model.eos_token_ids if request.end_id is None else (request.end_id,)
        turn.prepare(session, [*pending, *ids], len(ids), () if request.ignore_eos else end_ids)

    def _session(self, turn: Turn) -> Session | None:
        """The session that the turn continues, as of its parent; None if it begins one."""
        parent, request = turn.continuation.parent, turn.request
        if parent is None:
            return None
        with self._changed:
            session = self._sessions.at(request.key, parent)
            is_here = self._sessions.head(request.key) is session.turn
        if self._journal is not None and not is_here and request.has_input:
            self._restore_unless_copied(session, parent, self._journal)
        return session

    def _restore_unless_copied(self, session: Session, turn: TurnRecord, journal: Journal) -> None:
        """`_restore`, unless a session in memory ends with the turn, or with the next: a copy will do."""
        with self._changed:
            is_at_hand = self._sessions.twin(turn.id) or self._sessions.successor(turn)
        if not is_at_hand:
            self._restore(session, turn, journal)

    def _restore(self, session: Session, turn: TurnRecord, journal: Journal) -> None:
        """Read what the session, which this process does not have, is made from, as of ``turn``."""
        restored = journal.restore(turn, self._engine.receptive_field)
        session.state, session.behind = restored.state, restored.behind


def _check_wait(turn: Turn) -> None:
    """Raise TrtstreamError if the turn has waited so long that the reads before it must be stuck."""
    now = time.monotonic()
    if turn.deadline is not None and now > turn.deadline:
        raise TrtstreamError(f"the turn did not end within {turn.timeout_source}", code="timeout")
    if now - turn.submitted_at > READ_SECONDS:
        raise TrtstreamError("the session store does not answer; try again later", code="unavailable")


def _run_and_free(work: Callable[[], None]) -> None:
    work()
    release_freed_memory()
