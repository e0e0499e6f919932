"""Continuous batching: one thread steps the engine, and turns join and leave between steps."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trtstream.errors import TrtstreamError
from trtstream.runtime.prompt import first_prompt, next_prompt
from trtstream.runtime.requests import TurnOutput, TurnRequest
from trtstream.runtime.sampling import sample
from trtstream.runtime.session import Session, SessionStore, default_max_idle_bytes
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.runtime.turn import OnOutput, Turn
from trtstream.runtime.validation import validate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

NOT_FINITE = "the model's logits are not finite; check the checkpoint, or build with dtype float32"


@dataclass(frozen=True)
class SchedulerStats:
    """``running`` turns have a lane, ``queued`` ones wait for one; ``sessions`` are all that a turn can continue."""

    running: int
    queued: int
    sessions: int


class Scheduler:
    """Runs turns on an engine, which from now on belongs to the scheduler's thread.

    Every step feeds one token of each decoding turn in one batch, then chunks of prompts, up to a total of
    ``build.max_num_tokens`` tokens, so that a long prompt does not stall the others' tokens. Prompts take turns. Turns
    get lanes in the order of submission; ``max_queue_size`` turns may wait. For the other limits see `SessionStore`.

    ``tokenizer`` is a fast one without truncation, or None: then requests need input_ids, and outputs have ids only.
    """

    def __init__(
        self,
        engine: StreamingEngine,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        max_queue_size: int = 256,
        max_sessions: int = 4096,
        max_idle_bytes: int | None = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._max_queue_size = max_queue_size
        self._sessions = SessionStore(
            engine, default_max_idle_bytes() if max_idle_bytes is None else max_idle_bytes, max_sessions
        )
        self._queue: deque[Turn] = deque()
        self._running: list[Turn] = []  # those whose prompt was fed least recently first
        self._changed = threading.Condition()  # guards all of the above except the engine
        self._refusal = ""  # why new turns are refused
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="trtstream-scheduler", daemon=True)
        self._thread.start()

    def submit(self, request: TurnRequest, on_output: OnOutput) -> Turn:
        """Queue a turn, from any thread. Raises TrtstreamError at once for a request that cannot be run.

        ``on_output`` gets the turn's outputs on the scheduler's thread, so it must be quick: one for each token, the
        last with a ``finish_reason``; or, when the turn fails, an exception as the last. If it raises, the client
        counts as gone and the turn is cancelled.

        A turn that fails or misses its deadline leaves its session as it was, and so does one that is cancelled before
        its first token; one cancelled later keeps what it has generated.
        """
        validate(request, self._engine.model.vocab_size)
        with self._changed:
            self._check_open()
            session = self._sessions.reserve(request)
        try:
            turn = self._prepare(request, session, on_output)
            with self._changed:
                self._check_open()
                self._queue.append(turn)
                self._changed.notify_all()
        except BaseException:
            with self._changed:
                self._sessions.release(request.session_key)
            raise
        return turn

    def stats(self) -> SchedulerStats:
        with self._changed:
            return SchedulerStats(len(self._running), len(self._queue), len(self._sessions))

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new turns from now on and wait for those submitted to end; False if ``timeout`` (seconds) passed."""
        with self._changed:
            self._refusal = self._refusal or "the server is shutting down; no new turns are taken"
            return self._changed.wait_for(lambda: not self._queue and not self._running, timeout)

    def close(self) -> None:
        """Fail the turns that have not ended, drop all sessions and stop the thread."""
        with self._changed:
            self._refusal = "the engine is closed"
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check_open(self) -> None:
        if self._refusal:
            raise TrtstreamError(self._refusal, code="draining")
        if len(self._queue) >= self._max_queue_size:
            raise TrtstreamError(
                f"the server is busy: {len(self._queue)} turns are waiting; try again later", code="busy"
            )

    def _prepare(self, request: TurnRequest, session: Session | None, on_output: OnOutput) -> Turn:
        build = self._engine.build
        ids: list[int] = []
        if request.text is None and request.input_ids is None:  # only ends its session
            session = session or Session(request.session_key, build.sink_token_length)
            prompt: list[int] = []
        elif session is None or session.pending is None:
            first = first_prompt(request, self._tokenizer, build)
            session = Session(request.session_key, first.sink_token_length)
            prompt = ids = first.token_ids
        else:
            ids = next_prompt(request, self._tokenizer, session.pending)
            prompt = [session.pending, *ids]
        end_ids = self._engine.model.eos_token_ids if request.end_id is None else (request.end_id,)
        end_ids = () if request.ignore_eos else end_ids
        return Turn(request, session, prompt, len(ids), end_ids, self._tokenizer, on_output)

    # Everything below runs on the scheduler's thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._queue or self._running)
                if self._closed:
                    break
            try:
                self._step()
            except Exception as error:
                logger.exception("a scheduler step failed")
                for turn in self._turns():
                    self._fail(turn, error)
        for turn in self._turns():
            self._fail(turn, TrtstreamError("the engine was closed before the turn ended", code="draining"))

    def _turns(self) -> list[Turn]:
        with self._changed:
            return [*self._running, *self._queue]

    def _step(self) -> None:
        self._remove_cancelled()
        self._admit()
        decoding = {turn: turn.token for turn in self._running if turn.token is not None}
        if decoding:
            self._decode(decoding)
        budget = max(1, self._engine.build.max_num_tokens - len(decoding))
        for turn in [turn for turn in self._running if turn.fed < len(turn.prompt)]:
            if budget > 0:
                budget -= self._prefill(turn, budget)

    def _remove_cancelled(self) -> None:
        now = time.monotonic()
        for turn in self._turns():
            if turn.cancelled and turn.token is not None:
                self._finish(turn, turn.token, turn.final_output("cancelled", self._position(turn)))
            elif turn.cancelled:
                self._undo(turn, turn.final_output("cancelled", turn.session.position))
            elif turn.deadline is not None and now > turn.deadline:
                message = f"the turn did not end within its timeout of {turn.request.timeout} s"
                self._fail(turn, TrtstreamError(message, code="timeout"))

    def _admit(self) -> None:
        while self._queue:
            turn = self._queue[0]
            if not turn.prompt:
                self._end_session(turn)
                continue
            try:
                rebuilt = self._sessions.enter(turn.session)
            except Exception as error:
                self._fail(turn, error)
                continue
            if rebuilt is None:
                return
            turn.prompt = rebuilt + turn.prompt
            with self._changed:
                self._running.append(self._queue.popleft())

    def _lane(self, turn: Turn) -> int:
        """The lane of a running turn."""
        return self._sessions.lanes[turn.session]

    def _position(self, turn: Turn) -> int:
        """How many tokens the session of a running turn has been fed."""
        return self._engine.position(self._lane(turn))

    def _decode(self, tokens: dict[Turn, int]) -> None:
        """Feed one token of each of several turns."""
        turns = list(tokens)
        try:
            logits = self._engine.decode([self._lane(turn) for turn in turns], list(tokens.values()))
        except Exception as error:
            for turn in turns:
                self._fail(turn, error)
            return
        self._sample(turns, logits)

    def _prefill(self, turn: Turn, budget: int) -> int:
        """Feed up to ``budget`` tokens of the turn's prompt; returns how many."""
        chunk = turn.prompt[turn.fed : turn.fed + budget]
        with self._changed:
            self._running.remove(turn)
            self._running.append(turn)
        try:
            logits = self._engine.prefill(self._lane(turn), chunk)
        except Exception as error:
            self._fail(turn, error)
            return len(chunk)
        turn.fed += len(chunk)
        if turn.fed == len(turn.prompt):
            self._sample([turn], logits.unsqueeze(0))
        return len(chunk)

    def _sample(self, turns: list[Turn], logits: torch.Tensor) -> None:
        """Sample the next token of each turn from its row of ``logits`` [turns, vocab]."""
        try:
            visible = [
                self._engine.visible_tokens(self._lane(turn)) if turn.request.repetition_penalty != 1 else ()
                for turn in turns
            ]
            samples = sample(logits, [turn.sampler for turn in turns], visible)
        except Exception as error:
            for turn in turns:
                self._fail(turn, error)
            return
        for turn, chosen in zip(turns, samples, strict=True):
            if chosen is None:
                self._fail(turn, TrtstreamError(NOT_FINITE, code="internal"))
                continue
            try:
                output = turn.take(chosen, self._position(turn))
            except Exception as error:
                self._fail(turn, error)
                continue
            if output.finish_reason:
                self._finish(turn, chosen.token, output)
            else:
                turn.emit(output)

    # A session is released before its client gets the turn's last output, because the client may submit the session's
    # next turn at once. The turn is removed only after that output, so that a drained scheduler has sent everything.

    def _finish(self, turn: Turn, last_token: int, output: TurnOutput) -> None:
        with self._changed:
            self._sessions.commit(turn.session, last_token, ends=turn.request.session_end)
        self._remove(turn, output)

    def _end_session(self, turn: Turn) -> None:
        with self._changed:
            self._sessions.end(turn.session.key)
            self._sessions.release(turn.session.key)
        self._remove(turn, turn.final_output("stop", turn.session.position))

    def _fail(self, turn: Turn, error: Exception) -> None:
        if not isinstance(error, TrtstreamError):
            logger.error("a turn failed", exc_info=error)
            message = f"the engine failed in this turn: {type(error).__name__}: {error}"
            error = TrtstreamError(message, code="internal")
        self._undo(turn, error)

    def _undo(self, turn: Turn, output: TurnOutput | Exception) -> None:
        with self._changed:
            try:
                self._sessions.rollback(turn.session)
            except Exception as error:
                logger.error("a session is lost: its turn could not be undone", exc_info=error)
        self._remove(turn, output)

    def _remove(self, turn: Turn, output: TurnOutput | Exception) -> None:
        turn.emit(output)
        with self._changed:
            (self._running if turn in self._running else self._queue).remove(turn)
            self._changed.notify_all()
