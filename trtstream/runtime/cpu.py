"""The ``cpu`` target's engine: the decoder in torch, our attention kernel, one cache tensor for all sessions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from trtstream.errors import TrtstreamError
from trtstream.plugins.chunk_attention import ChunkPlan, chunk_attention, plan_chunk
from trtstream.plugins.cpu_kernel import DecodeKernel
from trtstream.plugins.decode_plan import Step, plan_step
from trtstream.plugins.positions import PositionEncoding
from trtstream.plugins.window import Window
from trtstream.runtime.decoder import Attention, DecoderWeights, decode_layers, logits
from trtstream.runtime.engine import SessionState
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


class CpuEngine:
    """Runs on the CPU with torch's threads. See `trtstream.runtime.engine.Engine` for the methods."""

    def __init__(self, model: ModelConfig, build: BuildConfig, weights: DecoderWeights, kernel: DecodeKernel) -> None:
        self.model = model
        self.build = build
        self._weights = weights
        self._kernel = kernel
        self._positions = PositionEncoding.of(model)
        # A session is contiguous, so exporting one is one copy. Zeroed now: memory that is short shows at load.
        self._cache = torch.zeros(
            build.max_batch_size,
            model.num_hidden_layers,
            2,
            model.num_key_value_heads,
            build.max_attention_window,
            model.head_dim,
            dtype=getattr(torch, build.dtype),
        ).zero_()
        self._slots = [self._new_slot(build.sink_token_length) for _ in range(build.max_batch_size)]

    def _new_slot(self, sinks: int) -> Slot:
        window = Window(sinks, self.build.max_sink_token_length, self.build.ring)
        receptive_field = self.model.num_hidden_layers * (window.ring - 1) + 1
        return Slot(window, 0, sinks, [], deque(maxlen=receptive_field))

    def reset(self, slot: int, sink_token_length: int | None = None) -> None:
        sinks = self.build.sink_token_length if sink_token_length is None else sink_token_length
        if not 0 <= sinks <= self.build.max_sink_token_length:
            raise TrtstreamError(
                f"a session asked for {sinks} sink tokens; this engine allows 0 to {self.build.max_sink_token_length} "
                "(build with a larger --max-sink-token-length)"
            )
        self._slots[slot] = self._new_slot(sinks)

    def position(self, slot: int) -> int:
        return self._slots[slot].position

    def visible_tokens(self, slot: int) -> list[int]:
        state = self._slots[slot]
        recent = state.recent_ids
        return state.sink_ids + list(islice(recent, max(len(recent) - state.window.ring, 0), None))

    @torch.inference_mode()
    def prefill(self, slot: int, tokens: Sequence[int]) -> torch.Tensor:
        self._check(tokens)
        for _, hidden in self._chunks(slot, tokens):
            last = hidden[-1:]
        result = self._logits(last)[0]
        self._slots[slot].last_logits = result
        return result

    @torch.inference_mode()
    def score(self, slot: int, tokens: Sequence[int]) -> torch.Tensor:
        self._check(tokens)
        state = self._slots[slot]
        scores = []
        for chunk, hidden in self._chunks(slot, tokens):
            after = self._logits(hidden)
            before = torch.full_like(after[0], torch.nan) if state.last_logits is None else state.last_logits
            predictions = torch.cat((before[None], after[:-1])).log_softmax(dim=-1)
            scores.append(predictions.gather(1, torch.tensor(chunk)[:, None])[:, 0])
            state.last_logits = after[-1].clone()
        return torch.cat(scores)

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        self._check(tokens)
        if len(set(slots)) != len(slots) or len(slots) != len(tokens):
            raise TrtstreamError("decode takes distinct slots and one token for each")
        states = [self._slots[slot] for slot in slots]
        for slot in slots:
            self._save(slot, 1)
        steps = [Step(slot, s.window, s.position, s.ring_first) for slot, s in zip(slots, states, strict=True)]
        plan = plan_step(self._positions, steps)

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return self._kernel(qkv, self._cache[:, layer], plan)

        result = self._logits(self._hidden(tokens, attention))
        for state, token, row_logits in zip(states, tokens, result, strict=True):
            state.append([token])
            state.last_logits = row_logits
        return result

    def _chunks(self, slot: int, tokens: Sequence[int]) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Feed tokens, at most ``max_num_tokens`` at once; each chunk with its last hidden states [T, hidden]."""
        state = self._slots[slot]
        for start in range(0, len(tokens), self.build.max_num_tokens):
            chunk = tokens[start : start + self.build.max_num_tokens]
            self._save(slot, len(chunk))
            plan = plan_chunk(state.window, self._positions, state.position, len(chunk), state.ring_first)

            def attention(layer: int, qkv: torch.Tensor, plan: ChunkPlan = plan) -> torch.Tensor:
                return chunk_attention(qkv, self._cache[slot, layer], plan, self.model.num_attention_heads)

            hidden = self._hidden(chunk, attention)
            state.append(chunk)
            yield chunk, hidden

    def _hidden(self, tokens: Sequence[int], attention: Attention) -> torch.Tensor:
        embedded = self._weights.embedding[torch.tensor(tokens)]
        return decode_layers(embedded, self._weights, self.model, attention)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return logits(hidden, self._weights, self.model).float()

    def _check(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise TrtstreamError("no tokens to feed")
        for token in tokens:
            if not 0 <= token < self.model.vocab_size:
                raise TrtstreamError(f"token id {token} is outside the vocabulary of {self.model.vocab_size}")

    def export_state(self, slot: int) -> SessionState:
        state = self._slots[slot]
        ids = [*state.sink_ids, *state.recent_ids]
        return SessionState(state.window.sinks, state.position, ids, self._cache[slot].clone())

    def import_state(self, slot: int, state: SessionState) -> None:
        sinks = min(state.sink_token_length, state.position)
        recent = state.token_ids[sinks:]
        ring_first = max(state.position - len(recent), state.sink_token_length)
        self.reset(slot, state.sink_token_length)
        target = self._slots[slot]
        if state.kv_cache is not None:
            self._cache[slot].copy_(state.kv_cache)
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
        state = self._slots[slot]
        state.undo = Undo(
            state.position,
            len(state.sink_ids),
            state.recent_ids.copy(),
            state.last_logits,
            UndoLog(state.window, state.position),
        )

    def commit_turn(self, slot: int) -> None:
        self._slots[slot].undo = None

    def rollback_turn(self, slot: int) -> None:
        state = self._slots[slot]
        undo, state.undo = state.undo, None
        if undo is None:
            raise TrtstreamError(f"slot {slot} has no turn to roll back")
        undo.log.restore(self._cache[slot])
        del state.sink_ids[undo.num_sink_ids :]
        state.position, state.recent_ids, state.last_logits = undo.position, undo.recent_ids, undo.last_logits

    def _save(self, slot: int, num_tokens: int) -> None:
        state = self._slots[slot]
        if state.undo is not None:
            state.undo.log.save(self._cache[slot], state.position + num_tokens)
