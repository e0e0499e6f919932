"""The engine of every target: it keeps the books of its sessions, and a `Backend` computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import torch

from trtstream.errors import TrtstreamError
from trtstream.plugins.decode_plan import Step
from trtstream.plugins.window import Window
from trtstream.runtime.backend import Backend, MixingBackend
from trtstream.runtime.host_copies import Arrival, host_bytes, host_memory
from trtstream.runtime.lane import Lane, ParkedSession, Undo
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.undo_log import UndoLog
from trtstream.settings import BuildConfig, ModelConfig


class StreamingEngine:
    """A loaded engine. A lane is a session's place in the batch, ``0 <= lane < build.max_batch_size``.

    Not thread-safe: one thread (the scheduler's) calls it. Logits are float32 tensors on the engine's device that stay
    valid after later calls; the device may still be computing them. Token ids outside ``[0, vocab_size)`` raise
    TrtstreamError before anything is changed.
    """

    def __init__(self, model: ModelConfig, build: BuildConfig, backend: Backend) -> None:
        self.model = model
        self.build = build
        self.backend = backend
        self._lanes = [self._new_lane(build.sink_token_length) for _ in range(build.max_batch_size)]

    def _new_lane(self, sinks: int) -> Lane:
        window = Window(sinks, self.build.max_sink_token_length, self.build.ring, self.backend.spare_slots)
        return Lane(window, 0, sinks, [], deque(maxlen=self.receptive_field))

    def reset(self, lane: int, sink_token_length: int | None = None) -> None:
        """Start a new session in ``lane``, with S sinks (default ``build.sink_token_length``).

        Raises TrtstreamError for more than the engine was built for.
        """
        sinks = self.build.sink_token_length if sink_token_length is None else sink_token_length
        if not 0 <= sinks <= self.build.max_sink_token_length:
            raise TrtstreamError(
                f"a session asked for {sinks} sink tokens; this engine allows 0 to {self.build.max_sink_token_length} "
                "(build with a larger --max-sink-token-length)"
            )
        self._lanes[lane] = self._new_lane(sinks)

    @property
    def receptive_field(self) -> int:
        """How many tokens behind the sinks shape the cache: a session can be rebuilt from them."""
        return self.model.num_hidden_layers * (self.build.ring - 1) + 1

    @property
    def device(self) -> torch.device:
        """Where it computes, and where its logits are."""
        return self.backend.session_cache(0).device

    @property
    def session_bytes(self) -> int:
        """Bytes of one session's cache."""
        return self.backend.session_cache(0).nbytes

    @property
    def host_bytes(self) -> int:
        """Bytes that a copy of one session's cache takes in host memory."""
        return host_bytes(self.session_bytes, pinned=self.device.type == "cuda")

    def position(self, lane: int) -> int:
        """How many tokens the session in ``lane`` has been fed."""
        return self._lanes[lane].position

    def visible_tokens(self, lane: int) -> list[int]:
        """Ids of the tokens that the session sees: its sinks, then its last R others, oldest first."""
        session = self._lanes[lane]
        # From the newest back: a deque reaches its middle one block after the other, and it holds all layers' tokens.
        newest_first = list(islice(reversed(session.recent_ids), session.window.ring))
        return session.sink_ids + newest_first[::-1]

    @torch.inference_mode()
    def prefill(self, lane: int, tokens: Sequence[int]) -> torch.Tensor:
        """Feed one or more tokens (chunked inside to ``max_num_tokens``); logits [vocab] after the last."""
        self._check(tokens)
        for _, logits in self._feed(lane, tokens, all_logits=False):
            last = logits
        self._lanes[lane].last_logits = last[-1]
        return last[-1]

    @torch.inference_mode()
    def score(self, lane: int, tokens: Sequence[int]) -> torch.Tensor:
        """Feed tokens; log-probability [T] of each given those before it (nan for a session's first token)."""
        self._check(tokens)
        session = self._lanes[lane]
        scores = []
        for chunk, after in self._feed(lane, tokens, all_logits=True):
            before = torch.full_like(after[0], torch.nan) if session.last_logits is None else session.last_logits
            predictions = torch.cat((before[None], after[:-1])).log_softmax(dim=-1)
            scores.append(predictions.gather(1, torch.tensor(chunk, device=after.device)[:, None])[:, 0])
            session.last_logits = after[-1].clone()
        return torch.cat(scores)

    @torch.inference_mode()
    def decode(self, lanes: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Feed one token to each of several distinct lanes in one step; logits [len(lanes), vocab]."""
        self._check(tokens)
        if len(set(lanes)) != len(lanes) or len(lanes) != len(tokens):
            raise TrtstreamError("decode takes distinct lanes and one token for each")
        for lane in lanes:
            self._save(lane, 1)
        logits = self.backend.decode([self._next_step(lane) for lane in lanes], tokens)
        for lane, token, row_logits in zip(lanes, tokens, logits, strict=True):
            self._lanes[lane].append([token])
            self._lanes[lane].last_logits = row_logits
        return logits

    @property
    def mixes(self) -> bool:
        """Whether `decode_and_prefill` costs less than `decode` and `prefill` one after the other."""
        return isinstance(self.backend, MixingBackend)

    @torch.inference_mode()
    def decode_and_prefill(
        self, lanes: Sequence[int], tokens: Sequence[int], chunks: Mapping[int, Sequence[int]]
    ) -> torch.Tensor:
        """Feed one token to each of several lanes, and in the same step a chunk to each of several others.

        ``chunks`` are token ids by lane, at most ``max_num_tokens`` with ``tokens``. Returns logits
        [len(lanes) + len(chunks), vocab], those after each chunk's last token behind those of ``lanes``.
        """
        if not chunks:
            return self.decode(lanes, tokens)
        if not isinstance(self.backend, MixingBackend):
            parts = [self.decode(lanes, tokens)] if lanes else []
            return torch.cat([*parts, *(self.prefill(lane, chunk)[None] for lane, chunk in chunks.items())])
        self._check(tokens or [0])
        for chunk in chunks.values():
            self._check(chunk)
        fed: dict[int, Sequence[int]] = dict(zip(lanes, ([token] for token in tokens), strict=True))
        if len(fed) != len(lanes) or fed.keys() & chunks.keys():
            raise TrtstreamError("decode_and_prefill takes distinct lanes")
        fed = {**fed, **chunks}
        for lane, ids in fed.items():
            self._save(lane, len(ids))
        steps = [self._next_step(lane) for lane in lanes]
        logits = self.backend.mixed(steps, tokens, [(self._next_step(lane), ids) for lane, ids in chunks.items()])
        for (lane, ids), row_logits in zip(fed.items(), logits, strict=True):
            self._lanes[lane].append(ids)
            self._lanes[lane].last_logits = row_logits
        return logits

    def _feed(
        self, lane: int, tokens: Sequence[int], *, all_logits: bool
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Feed tokens, at most ``max_num_tokens`` at once; yields each chunk and the logits after its tokens.

        Without ``all_logits`` there are only the logits after the last token, with the last chunk.
        """
        for start in range(0, len(tokens), self.build.max_num_tokens):
            chunk = tokens[start : start + self.build.max_num_tokens]
            is_last = start + len(chunk) == len(tokens)
            self._save(lane, len(chunk))
            num_logits = len(chunk) if all_logits else int(is_last)
            logits = self.backend.prefill(self._next_step(lane), chunk, num_logits)
            self._lanes[lane].append(chunk)
            yield chunk, logits

    def _next_step(self, lane: int) -> Step:
        session = self._lanes[lane]
        return Step(lane, session.window, session.position, session.ring_first)

    def _check(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise TrtstreamError("no tokens to feed")
        for token in tokens:
            if not 0 <= token < self.model.vocab_size:
                raise TrtstreamError(f"token id {token} is outside the vocabulary of {self.model.vocab_size}")

    def export_state(self, lane: int) -> SessionState:
        """A copy of the session, ``kv_cache`` included, whose bytes may still arrive (`SessionState.arrival`)."""
        return self._lanes[lane].state(self._copy_cache(lane), Arrival(self.device))

    def export_by_layer(self, lane: int) -> Iterator[SessionState | None]:
        """As `export_state`, but a layer is copied each time that the iterator is asked: it yields the state at last,
        and None before. The session must stay as it is meanwhile."""
        cache = self.backend.session_cache(lane)
        copy = host_memory(cache)
        for layer, source in enumerate(cache):
            copy[layer].copy_(source, non_blocking=True)
            yield None
        yield self._lanes[lane].state(copy, Arrival(self.device))

    def copy_session(self, source: int, lane: int) -> None:
        """Put a copy of the session in the lane ``source`` into ``lane``."""
        self.backend.session_cache(lane).copy_(self.backend.session_cache(source))
        self._lanes[lane] = self._lanes[source].copy()

    def position_before_last_turn(self, lane: int) -> int | None:
        """How many tokens the session had been fed before its last turn; None if that turn cannot be undone."""
        undo = self._lanes[lane].last_undo
        return None if undo is None else undo.position

    def copy_session_before_last_turn(self, source: int, lane: int) -> None:
        """Put the session in the lane ``source`` into ``lane`` as it was before its last turn."""
        cache = self.backend.session_cache(lane)
        cache.copy_(self.backend.session_cache(source))
        self._lanes[lane] = self._lanes[source].before_last_turn(cache)

    def import_state(self, lane: int, state: SessionState) -> None:
        """Put a session into ``lane``; a state without ``kv_cache`` is rebuilt from its ids.

        Raises TrtstreamError if ``kv_cache`` has another shape or dtype than this engine's.
        """
        cache = self.backend.session_cache(lane)
        if state.kv_cache is not None and (state.kv_cache.shape, state.kv_cache.dtype) != (cache.shape, cache.dtype):
            raise TrtstreamError(
                f"the session's cache is {list(state.kv_cache.shape)} {state.kv_cache.dtype}, and this engine's is "
                f"{list(cache.shape)} {cache.dtype}; import it without kv_cache, to be rebuilt from its ids"
            )
        sinks = min(state.sink_token_length, state.position)
        recent = state.token_ids[sinks:]
        ring_first = max(state.position - len(recent), state.sink_token_length)
        self.reset(lane, state.sink_token_length)
        session = self._lanes[lane]
        if state.kv_cache is not None:
            if state.arrival is not None:
                state.arrival.wait_on(cache.device)
            cache.copy_(state.kv_cache, non_blocking=state.kv_cache.is_pinned())
            session.append(state.token_ids)
            session.position, session.ring_first = state.position, ring_first
            return
        if sinks:
            self.prefill(lane, state.token_ids[:sinks])
        session.ring_first = ring_first
        if recent:
            session.position = ring_first
            self.prefill(lane, recent)

    def begin_turn(self, lane: int) -> None:
        """Start a log of overwritten slots, so that `rollback_turn` can restore this moment."""
        session = self._lanes[lane]
        session.last_undo = None
        session.undo = Undo(
            session.position,
            len(session.sink_ids),
            session.recent_ids.copy(),
            session.last_logits,
            UndoLog(session.window, session.position),
        )

    def commit_turn(self, lane: int) -> None:
        """End the turn that `begin_turn` started (a no-op without one). Its log stays until the session goes on."""
        self._lanes[lane].commit()

    def rollback_turn(self, lane: int) -> None:
        """Undo everything fed since `begin_turn`. Raises TrtstreamError without a log."""
        self._lanes[lane].rollback(self.backend.session_cache(lane))

    def park(self, lane: int) -> ParkedSession:
        """Take the session out of ``lane``, in the middle of a turn as well: its undo log goes with it."""
        session, copy = self._lanes[lane], self._copy_cache(lane)
        if session.undo is not None:
            session.undo.log.to(torch.device("cpu"))
        self.reset(lane)
        return ParkedSession(session, copy, Arrival(self.device))

    def resume(self, lane: int, parked: ParkedSession) -> None:
        """Put a parked session into ``lane``, any lane of this engine."""
        cache = self.backend.session_cache(lane)
        parked.arrival.wait_on(cache.device)
        cache.copy_(parked.kv_cache, non_blocking=True)
        if parked.session.undo is not None:
            parked.session.undo.log.to(cache.device)
        self._lanes[lane] = parked.session

    def _copy_cache(self, lane: int) -> torch.Tensor:
        """A copy in host memory, whose bytes may still arrive."""
        cache = self.backend.session_cache(lane)
        return host_memory(cache).copy_(cache, non_blocking=True)

    def _save(self, lane: int, num_tokens: int) -> None:
        session = self._lanes[lane]
        if session.undo is not None:
            session.undo.log.save(self.backend.session_cache(lane), session.position + num_tokens)
