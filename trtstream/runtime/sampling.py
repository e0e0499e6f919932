"""Picks a turn's next token from its logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnRequest

USUAL_NUCLEUS = 512  # tokens that hold top_p of nearly every distribution: found without sorting the vocabulary


class Sampler:
    """One turn's sampling: its parameters and its own random numbers (same seed, same logits, same tokens)."""

    def __init__(self, request: TurnRequest) -> None:
        self._request = request
        self._generator = torch.Generator()
        if request.random_seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(request.random_seed)

    def __call__(self, logits: torch.Tensor, visible_tokens: Sequence[int] = ()) -> int:
        """Return a token id. ``logits`` is float [vocab]; the repetition penalty looks at ``visible_tokens``."""
        request = self._request
        if request.repetition_penalty != 1 and visible_tokens:
            logits = penalize_repetition(logits, visible_tokens, request.repetition_penalty)
        best, token = logits.max(-1)  # torch's max returns a nan where there is one
        if not best.isfinite():
            raise TrtstreamError("the model's logits are not finite; check the checkpoint, or build with dtype float32")
        if request.temperature == 0:
            return int(token)
        tokens, probabilities = distribution(logits, request.temperature, request.top_k, request.top_p)
        return int(tokens[draw(probabilities, self._generator)])


def penalize_repetition(logits: torch.Tensor, tokens: Sequence[int], penalty: float) -> torch.Tensor:
    """Divide the positive logits of ``tokens`` by ``penalty`` and multiply the negative ones, each once."""
    ids = torch.tensor(tokens).unique()
    seen = logits[ids]
    return logits.index_copy(0, ids, torch.where(seen > 0, seen / penalty, seen * penalty))


def distribution(
    logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (token ids, probabilities) after temperature, then top-k, then top-p.

    float64, and shifted before the division: the smallest temperatures stay finite. Of the tokens in order of
    probability, top-p keeps the first ones whose sum reaches ``top_p``, and so always one.
    """
    scaled = (logits.double() - logits.max()) / temperature
    if top_k == 0 and top_p == 1:
        return torch.arange(len(scaled)), scaled.softmax(-1)
    best, tokens = scaled.topk(min(top_k or USUAL_NUCLEUS, len(scaled)))
    if top_k:
        probabilities = best.softmax(-1)
    else:
        probabilities = (best - scaled.logsumexp(-1)).exp()
        if probabilities.sum() < top_p:
            best, tokens = scaled.sort(descending=True)
            probabilities = best.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before >= top_p, 0)
    return tokens, kept / kept.sum()


def draw(probabilities: torch.Tensor, generator: torch.Generator) -> int:
    """An index into ``probabilities`` [n], by inverting their sum: several times as fast as torch.multinomial."""
    cumulative = probabilities.cumsum(-1)
    point = torch.rand((), dtype=cumulative.dtype, generator=generator) * cumulative[-1]
    return min(int(torch.searchsorted(cumulative, point, right=True)), len(cumulative) - 1)


def log_probability(logits: torch.Tensor, token: int) -> float:
    """The token's log-probability under the model itself, before penalty, temperature, top-k and top-p."""
    return float(logits[token].double() - logits.double().logsumexp(-1))
