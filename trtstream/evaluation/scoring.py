"""The ways to predict a text: streaming, window, dense, recompute, lru. Losses come segment by segment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trtstream.evaluation.tokens import TokenFile
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.streaming_engine import StreamingEngine

# Segments end at multiples of this, and their last token is fed alone, so that the results do not depend on where a run
# was interrupted.
SEGMENT = 2048


@dataclass(frozen=True)
class Run:
    """One pass over the text. ``every`` is 1, except for ``recompute``, which may predict every N-th token only. With
    such a run, the others' means over its positions are reported too: ``sample`` is its ``every`` in each of the runs.

    An engine of ``sink_token_length`` and ``max_attention_window`` computes it: no sinks and W recent tokens for
    ``window``; no sinks and as many recent tokens as there are for ``dense``; a fresh session for each token of
    ``recompute``; for ``lru`` see `trtstream.evaluation.lru`.
    """

    name: str
    method: str
    sink_token_length: int
    max_attention_window: int
    every: int = 1
    sample: int = 1

    def positions(self, begin: int, end: int) -> np.ndarray:
        """The predicted tokens among [begin, end): token 0 is never predicted."""
        return np.arange(max(-(-begin // self.every), 1) * self.every, end, self.every)


class Scorer:
    """Computes the losses of a run over ``tokens``, in order."""

    def __init__(self, run: Run, engine: StreamingEngine, tokens: TokenFile) -> None:
        self.run = run
        self.engine = engine
        self.tokens = tokens
        self.sink_token = engine.build.sink_token
        engine.reset(0)
        if self.sink_token is not None:
            engine.prefill(0, [self.sink_token])

    def segment(self, begin: int, end: int, *, keep: bool) -> tuple[np.ndarray, SessionState | None]:
        """Losses (float32, in nats) of `Run.positions` (begin, end), and if ``keep`` the state that `resume` needs: the
        session as it was before the segment's last token (``recompute`` has none).
        """
        if self.run.method == "recompute":
            return self._recompute(begin, end), None
        *ids, last = self.tokens.read(begin, end).tolist()
        log_probs = [self.engine.score(0, ids)] if ids else []
        state = self.engine.export_state(0) if keep else None
        log_probs.append(self.engine.score(0, [last]))
        losses = -torch.cat(log_probs).cpu().numpy()
        return losses[1:] if begin == 0 else losses, state

    def resume(self, begin: int, state: SessionState | None) -> None:
        """Continue at token ``begin``, the end of the segment that ``state`` was kept of."""
        if state is not None:
            self.engine.import_state(0, state)
            self.engine.prefill(0, self.tokens.read(begin - 1, begin).tolist())

    def _recompute(self, begin: int, end: int) -> np.ndarray:
        window = self.run.max_attention_window
        losses = []
        for position in self.run.positions(begin, end):
            *seen, target = self.tokens.read(max(position - window, 0), position + 1).tolist()
            self.engine.reset(0)
            losses.append(-self.engine.prefill(0, seen).log_softmax(dim=-1)[target].item())
        return np.array(losses, dtype=np.float32)
