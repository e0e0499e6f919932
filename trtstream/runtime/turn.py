"""One request from submission to its last output: the prompt left to feed, the sampled tokens and their text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trtstream.runtime.byte_counts import ByteCounts
from trtstream.runtime.continuation import Continuation, recalled_numbers
from trtstream.runtime.conversation import CacheKey, Session
from trtstream.runtime.detokenizer import Detokenizer
from trtstream.runtime.messages import Message
from trtstream.runtime.metrics import Measure, code_of
from trtstream.runtime.requests import TurnOutput, TurnRequest
from trtstream.runtime.sampling import Sample, Sampler
from trtstream.runtime.scheduler_limits import SchedulerLimits
from trtstream.runtime.stop_words import StopWords, stop_ids
from trtstream.runtime.transcript import transcript_after
from trtstream.sessions.records import Recalled, TurnRecord, new_turn_id, token_array

if TYPE_CHECKING:
    from trtstream.runtime.tokenizer import Tokenizer

OnOutput = Callable[[TurnOutput | Exception], None]
CONTEXT_TOKENS = 8  # tokens of the prompt that the detokenizer gets as context


class Turn:
    """A submitted request. `cancel` may be called from any thread; everything else belongs to the scheduler's."""

    def __init__(
        self,
        request: TurnRequest,
        limits: SchedulerLimits,
        tokenizer: Tokenizer | None,
        on_output: OnOutput,
    ) -> None:
        self.request = request
        self.id = new_turn_id()
        self.key: CacheKey | None = request.key  # of its session
        self.system, self.text = request.system, request.text
        self.transcript: bytes | None = None  # with the question, without the answer
        self.request_hash = b""
        self.continuation = Continuation()
        self.prompt: list[int] = []
        self.fed = 0  # tokens of the prompt
        self.token: int | None = None  # the last sampled one, not fed yet
        self.recalled: Recalled | None = None
        self.num_input_tokens = 0
        self.num_output_tokens = 0
        self.cancelled = False
        self.submitted_at = time.monotonic()
        self.entered_at = 0.0  # when it last got a lane, in seconds of `time.monotonic`
        self.first_token_at = self.last_token_at = 0.0
        self.tier = ""  # where its session's cache was, a label of "time_to_first_token_seconds"
        self.entered_in = 0  # the scheduler's step of that moment
        self.timeout_source, timeout = _timeout(request, limits)
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self._max_tokens = min(request.max_tokens, limits.max_tokens_limit or request.max_tokens)
        self.sampler = Sampler(request)
        self._tokenizer = tokenizer
        self._stop_words = StopWords(request.stop_words)
        self._on_output: OnOutput | None = on_output
        self._fed: list[int] = []  # the prompt as it was, and the answer
        self._text: list[str] = []
        self._detokenizer: Detokenizer | None = None
        self._byte_counts: ByteCounts | None = None

    @property
    def is_of_session(self) -> bool:
        """Whether its session ends with the turn once it has ended."""
        return self.key is not None and not self.request.session_end

    @property
    def is_kept(self) -> bool:
        """Whether it is part of a conversation, or the end of one."""
        return self.key is not None or self.request.continues

    def prepare(self, session: Session, prompt: list[int], num_input_tokens: int, end_ids: Sequence[int]) -> None:
        """Add what is known once the request's text has been tokenized."""
        self.session = session
        self.prompt = prompt
        self._fed = [*prompt]
        self.num_input_tokens = num_input_tokens
        self._end_ids = frozenset(end_ids) | stop_ids(self.request.stop_words, self._tokenizer)
        if self._tokenizer is None:
            return
        context = prompt[-CONTEXT_TOKENS:]
        if self.request.return_log_probs:
            self._byte_counts = ByteCounts(self._tokenizer)
            self._detokenizer = Detokenizer(self._tokenizer, context, self._byte_counts.add)
        else:
            self._detokenizer = Detokenizer(self._tokenizer, context)

    def cancel(self) -> None:
        """End the turn within a step and keep what it has generated. A no-op if it has ended already."""
        self.cancelled = True

    def take(self, sample: Sample, session_tokens: int) -> TurnOutput:
        """Add the next token, before which the session had been fed ``session_tokens`` tokens."""
        self.token = token = sample.token
        self._fed.append(token)
        self.num_output_tokens += 1
        self.last_token_at = time.monotonic()
        self.first_token_at = self.first_token_at or self.last_token_at
        log_probs = () if sample.log_probability is None else (sample.log_probability,)
        ended = token in self._end_ids
        new_text = "" if ended or self._detokenizer is None else self._detokenizer.push(token)
        text, stopped = self._stop_words.push(new_text)
        full = self.num_output_tokens == self._max_tokens
        reason = "stop" if ended or stopped else "length" if full else ""
        if reason:
            rest = self._flush()
            text += "" if stopped else rest
        output = self._output(text, (token,), log_probs, reason, session_tokens)
        return replace(output, turn_id=self.id.hex()) if self.is_of_session else output

    def final_output(self, finish_reason: str, session_tokens: int) -> TurnOutput:
        """The last output of a turn that ends without a new token."""
        return self._output(self._flush(), (), (), finish_reason, session_tokens)

    def record(self, output: TurnOutput, fingerprint: bytes) -> TurnRecord:
        """The turn as it is kept, once ``output`` has ended it."""
        parent, request = self.continuation.parent, self.request
        *tokens, pending = self._fed
        text = "".join(self._text)
        return TurnRecord(
            id=self.id,
            parent=None if parent is None else parent.id,
            root=self.id if parent is None else parent.root,
            fingerprint=fingerprint,
            sink_token_length=self.session.sink_token_length,
            start=self.session.position,
            tokens=token_array(tokens),
            pending=pending,
            num_input_tokens=output.num_input_tokens,
            num_output_tokens=output.num_output_tokens,
            system=self.system,
            prompt=self.text,
            text=text,
            finish_reason=output.finish_reason,
            request_id=request.request_id,
            request_hash=self.request_hash,
            created=time.time(),
            tenant=request.tenant,
            transcript=self.transcript and transcript_after(self.transcript, [Message("assistant", text)]),
            recalled=self.recalled,
        )

    def measure(self, measure: Measure, output: TurnOutput | Exception) -> None:
        """Pass on what there is to say of the turn, which has ended with ``output``."""
        if isinstance(output, Exception):
            measure("turns_total", label="failed")
            measure("refusals_total", label=code_of(output))
        else:
            measure("turns_total", label=output.finish_reason)
        measure("input_tokens_total", self.num_input_tokens)
        measure("output_tokens_total", self.num_output_tokens)
        if self.num_output_tokens:
            measure("time_to_first_token_seconds", self.first_token_at - self.submitted_at, self.tier)
        if self.num_output_tokens > 1:
            measure("inter_token_seconds", (self.last_token_at - self.first_token_at) / (self.num_output_tokens - 1))

    def emit(self, output: TurnOutput | Exception) -> None:
        """Pass ``output`` to the client. If that raises, the client is gone: the turn is cancelled silently."""
        if self._on_output is None:
            return
        try:
            self._on_output(output)
        except Exception:
            self._on_output = None
            self.cancelled = True

    def _flush(self) -> str:
        if self._detokenizer is None:
            return ""
        text, stopped = self._stop_words.push(self._detokenizer.flush())
        return text if stopped else text + self._stop_words.flush()

    def _output(
        self, text: str, ids: tuple[int, ...], log_probs: tuple[float, ...], reason: str, session_tokens: int
    ) -> TurnOutput:
        self._text.append(text)
        counts = () if self._byte_counts is None else self._byte_counts.take(text, ended=reason != "")
        return TurnOutput(
            text,
            ids,
            log_probs,
            reason,
            self.num_input_tokens,
            self.num_output_tokens,
            session_tokens,
            byte_counts=counts,
            recalled=recalled_numbers(self.recalled),
        )


def _timeout(request: TurnRequest, limits: SchedulerLimits) -> tuple[str, float | None]:
    """(What sets the turn's deadline, for an error message, and the seconds until then, None without one.)"""
    if request.timeout is not None and (limits.turn_timeout is None or request.timeout <= limits.turn_timeout):
        return f"its timeout of {request.timeout} s", request.timeout
    return f"the {limits.turn_timeout} s that this server gives a turn", limits.turn_timeout
