"""The engine of every target: it keeps the books of its sessions, and a `Backend` computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from trtstream.errors import TrtstreamError
from trtstream.plugins.decode_plan import Step
from trtstream.plugins.window import Window
from trtstream.runtime.backend import Backend
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.undo_log import UndoLog
from trtstream.settings import BuildConfig, ModelConfig


@dataclass
class Slot:
    """One session's place: where it stands, and the ids that its cache can be rebuilt from."""

    window: Window
    position: int  # t of the next token
    ring_first: int  # the ring's first token: S, or later in a session rebuilt from its ids
    sink_ids: list[int]
    recent_ids: deque[int]
    last_logits: torch.Tensor | None = None
    undo: Undo | None = None

    def append(self, tokens: Sequence[int]) -> None:
        missing = max(self.window.sinks - self.position, 0)
        self.sink_ids.extend(tokens[:missing])
        self.recent_ids.extend(tokens[missing:])
        self.position += len(tokens)


@dataclass
class Undo:
    """A slot as it was when its turn began."""

    position: int
    num_sink_ids: int
    recent_ids: deque[int]
    last_logits: torch.Tensor | None
    log: UndoLog


class StreamingEngine:
    """A loaded engine. A slot is one session's place in the batch, ``0 <= slot < build.max_batch_size``.

    Not thread-safe: one thread (the scheduler's) calls it. Logits are float32 tensors on the engine's device that stay
    valid after later calls; what computes there may still be under way. Token ids outside ``[0, vocab_size)`` raise
    TrtstreamError before anything is changed.
    """

    def __init__(self, model: ModelConfig, build: BuildConfig, backend: Backend) -> None:
        self.model = model
        self.build = build
        self._backend = backend
        self._slots = [self._new_slot(build.sink_token_length) for _ in range(build.max_batch_size)]

    def _new_slot(self, sinks: int) -> Slot:
        window = Window(sinks, self.build.max_sink_token_length, self.build.ring, self._backend.spare_slots)
        receptive_field = self.model.num_hidden_layers * (window.ring - 1) + 1
        return Slot(window, 0, sinks, [], deque(maxlen=receptive_field))

    def reset(self, slot: int, sink_token_length: int | None = None) -> None:
        """Start a new session in ``slot``, with S sinks (default ``build.sink_token_length``)."""
        sinks = self.build.sink_token_length if sink_token_length is None else sink_token_length
        if not 0 <= sinks <= self.build.max_sink_token_length:
            raise TrtstreamError(
                f"a session asked for {sinks} sink tokens; this engine allows 0 to {self.build.max_sink_token_length} "
                "(build with a larger --max-sink-token-length)"
            )
        self._slots[slot] = self._new_slot(sinks)

    def position(self, slot: int) -> int:
        """How many tokens the session in ``slot`` has been fed."""
        return self._slots[slot].position

    def visible_tokens(self, slot: int) -> list[int]:
        """Ids of the tokens that the session sees: its sinks, then its last R others, oldest first."""
        state = self._slots[slot]
        recent = state.recent_ids
        return state.sink_ids + list(islice(recent, max(len(recent) - state.window.ring, 0), None))

    @torch.inference_mode()
    def prefill(self, slot: int, tokens: Sequence[int]) -> torch.Tensor:
        """Feed one or more tokens (chunked inside to ``max_num_tokens``); logits [vocab] after the last."""
        self._check(tokens)
        for _, logits in self._feed(slot, tokens, all_logits=False):
            last = logits
        self._slots[slot].last_logits = last[-1]
        return last[-1]

    @torch.inference_mode()
    def score(self, slot: int, tokens: Sequence[int]) -> torch.Tensor:
        """Feed tokens; log-probability [T] of each given those before it (nan for a session's first token)."""
        self._check(tokens)
        state = self._slots[slot]
        scores = []
        for chunk, after in self._feed(slot, tokens, all_logits=True):
            before = torch.full_like(after[0], torch.nan) if state.last_logits is None else state.last_logits
            predictions = torch.cat((before[None], after[:-1])).log_softmax(dim=-1)
            scores.append(predictions.gather(1, torch.tensor(chunk, device=after.device)[:, None])[:, 0])
            state.last_logits = after[-1].clone()
        return torch.cat(scores)

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Feed one token to each of several distinct slots in one step; logits [len(slots), vocab]."""
        self._check(tokens)
        if len(set(slots)) != len(slots) or len(slots) != len(tokens):
            raise TrtstreamError("decode takes distinct slots and one token for each")
        for slot in slots:
            self._save(slot, 1)
        logits = self._backend.decode([self._next_step(slot) for slot in slots], tokens)
        for slot, token, row_logits in zip(slots, tokens, logits, strict=True):
            self._slots[slot].append([token])
            self._slots[slot].last_logits = row_logits
        return logits

    def _feed(
        self, slot: int, tokens: Sequence[int], *, all_logits: bool
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Feed tokens, at most ``max_num_tokens`` at once; each chunk with the logits after its tokens.

        Without ``all_logits`` only the last chunk has any: those after the last token.
        """
        for start in range(0, len(tokens), self.build.max_num_tokens):
            chunk = tokens[start : start + self.build.max_num_tokens]
            is_last = start + len(chunk) == len(tokens)
            self._save(slot, len(chunk))
            num_logits = len(chunk) if all_logits else int(is_last)
            logits = self._backend.prefill(self._next_step(slot), chunk, num_logits)
            self._slots[slot].append(chunk)
            yield chunk, logits

    def _next_step(self, slot: int) -> Step:
        state = self._slots[slot]
        return Step(slot, state.window, state.position, state.ring_first)

    def _check(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise TrtstreamError("no tokens to feed")
        for token in tokens:
            if not 0 <= token < self.model.vocab_size:
                raise TrtstreamError(f"token id {token} is outside the vocabulary of {self.model.vocab_size}")

    def export_state(self, slot: int) -> SessionState:
        """A copy of the session, ``kv_cache`` included."""
        state = self._slots[slot]
        ids = [*state.sink_ids, *state.recent_ids]
        cache = self._backend.session_cache(slot).to("cpu", copy=True)
        return SessionState(state.window.sinks, state.position, ids, cache)

    def import_state(self, slot: int, state: SessionState) -> None:
        """Put a session into ``slot``; a state without ``kv_cache`` is rebuilt from its ids."""
        sinks = min(state.sink_token_length, state.position)
        recent = state.token_ids[sinks:]
        ring_first = max(state.position - len(recent), state.sink_token_length)
        self.reset(slot, state.sink_token_length)
        target = self._slots[slot]
        if state.kv_cache is not None:
            self._backend.session_cache(slot).copy_(state.kv_cache)
            target.append(state.token_ids)
            target.position, target.ring_first = state.position, ring_first
            return
        if sinks:
            self.prefill(slot, state.token_ids[:sinks])
        target.ring_first = ring_first
        if recent:
            target.position = ring_first
            self.prefill(slot, recent)

    def begin_turn(self, slot: int) -> None:
        """From here on keep what is overwritten, so that `rollback_turn` can restore this moment."""
        state = self._slots[slot]
        state.undo = Undo(
            state.position,
            len(state.sink_ids),
            state.recent_ids.copy(),
            state.last_logits,
            UndoLog(state.window, state.position),
        )

    def commit_turn(self, slot: int) -> None:
        """Forget the log that `begin_turn` started (a no-op without one)."""
        self._slots[slot].undo = None

    def rollback_turn(self, slot: int) -> None:
        """Undo everything fed since `begin_turn`."""
        state = self._slots[slot]
        undo, state.undo = state.undo, None
        if undo is None:
            raise TrtstreamError(f"slot {slot} has no turn to roll back")
        undo.log.restore(self._backend.session_cache(slot))
        del state.sink_ids[undo.num_sink_ids :]
        state.position, state.recent_ids, state.last_logits = undo.position, undo.recent_ids, undo.last_logits

    def _save(self, slot: int, num_tokens: int) -> None:
        state = self._slots[slot]
        if state.undo is not None:
            state.undo.log.save(self._backend.session_cache(slot), state.position + num_tokens)
