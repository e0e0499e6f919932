"""One request from submission to its last output: the prompt left to feed, the sampled tokens and their text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trtstream.runtime.detokenizer import Detokenizer
from trtstream.runtime.requests import TurnOutput, TurnRequest
from trtstream.runtime.sampling import Sample, Sampler
from trtstream.runtime.session import Session
from trtstream.runtime.stop_words import StopWords

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnOutput = Callable[[TurnOutput | Exception], None]
CONTEXT_TOKENS = 8  # tokens of the prompt that the detokenizer gets as context


class Turn:
    """A submitted request. `cancel` may be called from any thread; everything else belongs to the scheduler's."""

    def __init__(
        self,
        request: TurnRequest,
        session: Session,
        prompt: list[int],
        num_input_tokens: int,
        end_ids: Sequence[int],
        tokenizer: PreTrainedTokenizerBase | None,
        on_output: OnOutput,
    ) -> None:
        self.request = request
        self.session = session
        self.prompt = prompt
        self.fed = 0  # tokens of the prompt
        self.token: int | None = None  # the last sampled one, not fed yet
        self.num_input_tokens = num_input_tokens
        self.num_output_tokens = 0
        self.cancelled = False
        self.deadline = None if request.timeout is None else time.monotonic() + request.timeout
        self._end_ids = frozenset(end_ids)
        self.sampler = Sampler(request)
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, prompt[-CONTEXT_TOKENS:])
        self._stop_words = StopWords(request.stop_words)
        self._on_output: OnOutput | None = on_output

    def cancel(self) -> None:
        """End the turn within a step and keep what it has generated. A no-op if it has ended already."""
        self.cancelled = True

    def take(self, sample: Sample, session_tokens: int) -> TurnOutput:
        """Add the next token, before which the session had been fed ``session_tokens`` tokens."""
        self.token = token = sample.token
        self.num_output_tokens += 1
        log_probs = () if sample.log_probability is None else (sample.log_probability,)
        ended = token in self._end_ids
        new_text = "" if ended or self._detokenizer is None else self._detokenizer.push(token)
        text, stopped = self._stop_words.push(new_text)
        full = self.num_output_tokens == self.request.max_tokens
        reason = "stop" if ended or stopped else "length" if full else ""
        if reason and not stopped:
            text += self._flush()
        return self._output(text, (token,), log_probs, reason, session_tokens)

    def final_output(self, finish_reason: str, session_tokens: int) -> TurnOutput:
        """The last output of a turn that ends without a new token."""
        return self._output(self._flush(), (), (), finish_reason, session_tokens)

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
        return TurnOutput(text, ids, log_probs, reason, self.num_input_tokens, self.num_output_tokens, session_tokens)
