"""Continuous batching: one thread steps the engine, and turns join and leave between steps."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from trtstream import failpoint
from trtstream.errors import TrtstreamError
from trtstream.runtime.committing import Committing, Ending
from trtstream.runtime.intake import Intake
from trtstream.runtime.metrics import Measure, code_of, measure_nothing
from trtstream.runtime.prefill_pacing import PrefillPacing
from trtstream.runtime.requests import TurnOutput, TurnRequest
from trtstream.runtime.sampling import sample
from trtstream.runtime.scheduler_limits import SchedulerLimits, SchedulerStats
from trtstream.runtime.session import SessionStore, StateMissing
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.runtime.turn import OnOutput, Turn
from trtstream.runtime.turn_reader import TurnReader
from trtstream.runtime.validation import validate

if TYPE_CHECKING:
    from trtstream.runtime.journal import Journal
    from trtstream.runtime.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

SNAPSHOT_SECONDS = 3.0  # for those that a scheduler writes when it is closed
NOT_FINITE = "the model's logits are not finite; check the checkpoint, or build with dtype float32"


class Scheduler:
    """Runs turns on an engine, which from now on belongs to the scheduler's thread.

    Every step feeds one token of each decoding turn in one batch, then chunks of prompts: `PrefillPacing` says how many
    tokens, so that a long prompt does not stall the others' tokens. Prompts take turns. Turns get lanes in the order of
    submission. When all lanes are taken and a turn waits, the turn that has run longest yields its lane once it has had
    its fair share, and waits behind the others. For the limits see `SchedulerLimits`.

    ``tokenizer`` is a fast one without truncation, or None: then requests need input_ids, and outputs have ids only.

    With a ``journal``, a session's turn has ended once the session store has it: until then it is *committing*, keeps
    its lane and its undo log, and its last output waits.
    """

    def __init__(
        self,
        engine: StreamingEngine,
        tokenizer: Tokenizer | None,
        limits: SchedulerLimits | None = None,
        journal: Journal | None = None,
        measure: Measure = measure_nothing,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._limits = limits = limits or SchedulerLimits()
        self._measure = measure
        self._sessions = SessionStore(engine, limits, journal, measure)
        self._pacing = PrefillPacing(limits.max_itl_ms, engine.build.max_num_tokens)
        self._steps = 0
        self._step_started: float | None = None
        self._queue: deque[Turn] = deque()
        self._running: list[Turn] = []  # those whose prompt was fed least recently first
        self._changed = threading.Condition()  # guards all of the above except the engine
        self._journal = journal
        self._committing = None if journal is None else Committing(journal, self._sessions, self._changed)
        self._fingerprint = bytes(32) if journal is None else journal.fingerprint
        reader = TurnReader(engine, tokenizer, self._sessions, journal, self._changed, limits)
        self._intake = Intake(limits, reader, self._sessions, self._queue, self._changed, measure)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="trtstream-scheduler", daemon=True)
        self._thread.start()

    def submit(self, request: TurnRequest, on_output: OnOutput) -> Turn:
        """Queue a turn, from any thread. Raises TrtstreamError at once for a request that cannot be run.

        ``on_output`` gets the turn's outputs on the scheduler's thread, so it must be quick: one for each token, the
        last with a ``finish_reason``; or, when the turn fails, an exception as the last. If it raises, the client
        counts as gone and the turn is cancelled. A long text is tokenized later, so that the caller need not wait for
        it: what is wrong with it arrives as an output, on another thread.

        A turn that fails or misses its deadline leaves its session as it was, and so does one that is cancelled before
        its first token; one cancelled later keeps what it has generated. A request whose id is that of a turn that has
        ended gets that turn's answer again, as one output.
        """
        try:
            validate(request, self._engine.model.vocab_size, self._limits.max_tokens_limit)
            turn = Turn(request, self._limits, self._tokenizer, on_output)
            self._intake.take(turn)
        except TrtstreamError as error:
            self._measure("refusals_total", label=code_of(error))
            raise
        return turn

    def stats(self) -> SchedulerStats:
        with self._changed:
            return SchedulerStats(len(self._running), len(self._queue), len(self._sessions))

    def gauges(self) -> dict[tuple[str, str], float]:
        """What the gauges among `METRICS` are now, by metric and label. Reads the folder of snapshots."""
        stats = self.stats()
        return {
            ("turns_running", ""): stats.running,
            ("turns_queued", ""): stats.queued,
            ("sessions", "engine"): len(self._sessions.lanes),
            ("sessions", "host"): self._sessions.num_in_host_memory(),
            ("sessions", "snapshot"): 0 if self._journal is None else self._journal.num_snapshots(),
        }

    def step_seconds(self) -> float:
        """How long the current step has lasted; 0.0 between steps. Never waits."""
        started = self._step_started
        return 0.0 if started is None else time.monotonic() - started

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new turns and wait for those submitted to end; False if ``timeout`` (seconds) passed."""
        with self._changed:
            self._intake.refuse("the server is shutting down; no new turns are taken")
            return self._changed.wait_for(lambda: not (self._intake or self._turns() or self._committing), timeout)

    def close(self, snapshot_seconds: float = SNAPSHOT_SECONDS) -> None:
        """Fail the turns that have not ended, write snapshots for up to ``snapshot_seconds``, and stop the thread."""
        self._snapshot_seconds = snapshot_seconds
        with self._changed:
            self._intake.close("the engine is closed")
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # Everything below runs on the scheduler's thread.

    def _run(self) -> None:
        if self._engine.device.type == "cuda":  # a thread begins on the first GPU, and graphs are replayed on theirs
            torch.cuda.set_device(self._engine.device)
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, None if self._committing is None else self._committing.seconds())
                if self._closed:
                    break
            self._step_started = time.monotonic()
            try:
                self._step()
            except Exception as error:
                logger.exception("a scheduler step failed")
                for turn in self._turns():
                    self._fail(turn, error)
            self._step_started = None
        if self._committing is not None:
            self._committing.close()
            self._settle(last=True)
        for turn in self._turns():
            self._fail(turn, TrtstreamError("the engine was closed before the turn ended", code="draining"))
        if self._journal is not None:
            self._journal.write_snapshots(self._sessions.unsaved(), self._snapshot_seconds)

    def _has_work(self) -> bool:
        committed = self._committing and self._committing.has_outcomes()
        return bool(self._closed or self._queue or self._running or committed or self._sessions.snapshots)

    def _turns(self) -> list[Turn]:
        with self._changed:
            return [*self._running, *self._queue]

    def _step(self) -> None:
        self._steps += 1
        self._sessions.snapshots.copy_layer()
        self._settle()
        self._remove_cancelled()
        self._admit()
        decoding = {turn: turn.token for turn in self._running if turn.token is not None}
        chunks = self._next_chunks(self._pacing.budget(len(decoding)))
        if self._engine.mixes:
            self._feed(decoding, chunks)
        else:  # one after the other, so that a chunk that fails fails alone
            self._feed(decoding, {})
            for turn, chunk in chunks.items():
                self._feed({}, {turn: chunk})
        if not decoding:
            self._pacing.paused()

    def _next_chunks(self, budget: int) -> dict[Turn, list[int]]:
        """The parts of waiting prompts, ``budget`` tokens in all, that are fed next."""
        chunks = {}
        for turn in self._running:
            if turn.fed < len(turn.prompt) and budget > 0:
                chunks[turn] = turn.prompt[turn.fed : turn.fed + budget]
                budget -= len(chunks[turn])
        with self._changed:
            self._running = [*(turn for turn in self._running if turn not in chunks), *chunks]
        return chunks

    def _feed(self, decoding: Mapping[Turn, int], chunks: Mapping[Turn, list[int]]) -> None:
        """Feed one token to each of several turns, and parts of their prompts to others."""
        turns = [*decoding, *chunks]
        if not turns:
            return
        try:
            lanes = [self._lane(turn) for turn in decoding]
            parts = {self._lane(turn): chunk for turn, chunk in chunks.items()}
            failpoint.wait_for_device()
            logits = self._engine.decode_and_prefill(lanes, list(decoding.values()), parts)
        except Exception as error:
            for turn in turns:
                self._fail(turn, error)
            return
        for turn, chunk in chunks.items():
            turn.fed += len(chunk)
        rows = [row for row, turn in enumerate(turns) if turn.fed == len(turn.prompt)]
        if rows:
            self._sample([turns[row] for row in rows], logits if len(rows) == len(turns) else logits[rows])
        self._pacing.fed(sum(map(len, chunks.values())), is_decoding=bool(decoding))

    def _remove_cancelled(self) -> None:
        now = time.monotonic()
        for turn in self._turns():
            if turn.cancelled and turn.token is not None:
                self._finish(turn, turn.final_output("cancelled", self._position(turn)))
            elif turn.cancelled:
                self._undo(turn, turn.final_output("cancelled", turn.session.position))
            elif turn.deadline is not None and now > turn.deadline:
                self._fail(turn, TrtstreamError(f"the turn did not end within {turn.timeout_source}", code="timeout"))

    def _admit(self) -> None:
        while self._queue:
            turn = self._queue[0]
            self._settle()  # its session's last turn, which it may have followed at once
            if not turn.prompt:
                self._commit(turn, Ending(turn.final_output("stop", turn.session.position)))
                continue
            turn.tier = turn.tier or self._sessions.tier(turn.session)
            try:
                rebuilt = self._sessions.enter(turn.session)
            except StateMissing:
                self._intake.read_again(turn)
                continue
            except Exception as error:
                self._fail(turn, error)
                continue
            if rebuilt is None:
                if self._yield_lane(turn):
                    continue
                return
            if rebuilt:
                self._measure("rebuilt_total")
                self._measure("rebuilt_tokens_total", len(rebuilt))
            turn.prompt = rebuilt + turn.prompt
            turn.entered_at, turn.entered_in = time.monotonic(), self._steps
            with self._changed:
                self._running.append(self._queue.popleft())
                self._sessions.expire()

    def _yield_lane(self, waiting: Turn) -> bool:
        """Let the turn that has run longest give its lane to ``waiting``, if it has had its fair share."""
        turn = min(self._running, key=lambda turn: turn.entered_at, default=None)
        if (
            turn is None
            or turn.entered_in == self._steps
            or time.monotonic() - turn.entered_at < self._limits.fair_share
            or not self._sessions.has_room_to_park(waiting.session)
        ):
            return False
        try:
            self._sessions.park(turn.session)
        except Exception as error:
            self._fail(turn, error)
            return True
        with self._changed:
            self._running.remove(turn)
            self._queue.append(turn)
        return True

    def _lane(self, turn: Turn) -> int:
        """The lane of a running turn."""
        return self._sessions.lanes[turn.session]

    def _position(self, turn: Turn) -> int:
        """How many tokens the session of a turn that has begun has been fed."""
        return self._sessions.position(turn.session)

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
                if self._journal is not None and output.num_output_tokens == 1:
                    self._journal.costs.was_fed(len(turn.prompt), time.monotonic() - turn.entered_at)
            except Exception as error:
                self._fail(turn, error)
                continue
            if output.finish_reason:
                self._finish(turn, output)
            else:
                turn.emit(output)

    # A session is released before its client gets the turn's last output, because the client may submit the session's
    # next turn at once. The turn is removed only after that output, so that a drained scheduler has sent everything.

    def _finish(self, turn: Turn, output: TurnOutput) -> None:
        is_kept = turn.key is not None if self._committing is None else turn.is_kept
        if is_kept and not turn.request.session_end:
            output = replace(output, turn_id=turn.id.hex())
        self._commit(turn, Ending(output, turn.record(output, self._fingerprint)))

    def _commit(self, turn: Turn, ending: Ending) -> None:
        """End the turn once the session store has what it changes there, if it changes anything."""
        in_store = turn.is_kept and (not turn.request.session_end or turn.continuation.head is not None)
        if self._committing is None or not in_store:
            self._end(turn, ending)
            return
        with self._changed:
            (self._running if turn in self._running else self._queue).remove(turn)
            self._committing.add(turn, ending)

    def _settle(self, last: bool = False) -> None:
        """End the turns whose commits have an outcome, or none in time; with ``last``, all of them."""
        for turn, ending, error in () if self._committing is None else self._committing.outcomes(last):
            if error is None:
                self._end(turn, ending)
            elif error.code == "unknown":
                self._lose(turn, error)
            else:
                self._fail(turn, error)

    def _end(self, turn: Turn, ending: Ending) -> None:
        with self._changed:
            if ending.record is None:
                self._sessions.end(turn.session.key)
                self._sessions.release(turn.session.key)
            else:
                self._sessions.commit(turn.session, ending.record, turn.request.session_end, ending.is_told)
        self._remove(turn, ending.output, ending.is_told)

    def _lose(self, turn: Turn, error: TrtstreamError) -> None:
        """End a turn that may be committed or not: its next turn looks the session up again."""
        with self._changed:
            self._sessions.drop(turn.session)
        self._remove(turn, error)

    def _fail(self, turn: Turn, error: Exception) -> None:
        if not isinstance(error, TrtstreamError):
            logger.error("a turn failed", exc_info=error)
            message = f"the engine failed in this turn: {type(error).__name__}: {error}"
            error = TrtstreamError(message, code="internal")
        self._undo(turn, error)

    def _undo(self, turn: Turn, output: TurnOutput | Exception) -> None:
        with self._changed:
            self._sessions.release(turn.session.key)
            try:
                if turn.entered_in:  # else its session's last turn may still be in the lane
                    self._sessions.rollback(turn.session)
            except Exception as error:
                logger.error("a session is lost: its turn could not be undone", exc_info=error)
        self._remove(turn, output)

    def _remove(self, turn: Turn, output: TurnOutput | Exception, is_told: bool = False) -> None:
        turn.measure(self._measure, output)
        if not is_told:
            turn.emit(output)
        with self._changed:
            if self._committing is None or not self._committing.remove(turn):
                (self._running if turn in self._running else self._queue).remove(turn)
            self._changed.notify_all()
