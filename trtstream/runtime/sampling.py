"""Samples the next token of every turn in a batch from logits on any device, with one wait for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trtstream.runtime.requests import TurnRequest

USUAL_NUCLEUS = 512  # most probable tokens, found without sorting the vocabulary: nearly always a whole nucleus

SMALLEST_TEMPERATURE = 1e-30


class Sampler:
    """One turn's sampling: its parameters and its own random numbers (same seed, same logits, same tokens).

    ``counts`` are the tokens that it has sampled, where a penalty depends on them.
    """

    def __init__(self, request: TurnRequest) -> None:
        self.request = request
        self.counts: Counter[int] = Counter()
        self._generator = torch.Generator()
        if request.random_seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(request.random_seed)

    def uniform(self) -> float:
        """The next random number in [0, 1)."""
        return float(torch.rand((), dtype=torch.float64, generator=self._generator))

    def count(self, token: int) -> None:
        if self.request.frequency_penalty or self.request.presence_penalty:
            self.counts[token] += 1


@dataclass(frozen=True)
class Sample:
    """A token, and its log-probability under the model itself (None where it was not asked for)."""

    token: int
    log_probability: float | None


def sample(
    logits: torch.Tensor, samplers: Sequence[Sampler], visible_tokens: Sequence[Sequence[int]]
) -> list[Sample | None]:
    """Sample one token for each row of ``logits`` [N, vocab]; None for a row that is not finite.

    A row's repetition penalty applies to its ``visible_tokens``, its other penalties to those sampled before. A
    log-probability is the one before penalties, temperature, top-k and top-p.
    """
    requests = [sampler.request for sampler in samplers]
    raw_logits = logits
    for row, (request, seen) in enumerate(zip(requests, visible_tokens, strict=True)):
        if request.repetition_penalty != 1 and seen:
            logits = logits.clone() if logits is raw_logits else logits
            logits[row] = penalize_repetition(logits[row], seen, request.repetition_penalty)
        if counts := samplers[row].counts:
            logits = logits.clone() if logits is raw_logits else logits
            logits[row] = penalize_counts(logits[row], counts, request.frequency_penalty, request.presence_penalty)

    best, tokens = logits.max(-1)  # torch's max returns a nan where there is one
    incomplete = torch.zeros_like(best, dtype=torch.bool)  # rows whose nucleus has more tokens than were looked at
    uniforms = {row: samplers[row].uniform() for row, request in enumerate(requests) if request.temperature > 0}
    truncated = [row for row in uniforms if requests[row].top_k or requests[row].top_p < 1]
    full = [row for row in uniforms if row not in truncated]
    if full:
        rows = _on_device(logits, full, torch.int64)
        probabilities = distribution(logits[rows], [requests[row] for row in full])
        tokens[rows] = draw(probabilities, _on_device(logits, [uniforms[row] for row in full]))
    if truncated:
        rows, truncating = _on_device(logits, truncated, torch.int64), [requests[row] for row in truncated]
        count = max(request.top_k or USUAL_NUCLEUS for request in truncating)
        candidates, probabilities, complete = nucleus(logits[rows], truncating, count)
        drawn = draw(probabilities, _on_device(logits, [uniforms[row] for row in truncated]))
        tokens[rows] = candidates.gather(1, drawn.unsqueeze(1)).squeeze(1)
        incomplete[rows] = ~complete

    log_probabilities = torch.zeros_like(best, dtype=torch.float64)
    if any(request.return_log_probs for request in requests):
        log_probabilities = log_probability(raw_logits, tokens)
    # The one wait for the device: a copy of all results, in float64, which represents every token id exactly.
    results = torch.stack((best.isfinite().double(), incomplete.double(), tokens.double(), log_probabilities), dim=1)
    samples: list[Sample | None] = []
    for row, (finite, redraw, token, value) in enumerate(results.tolist()):
        if finite and redraw:
            token, value = _draw_from_all(logits[row], raw_logits[row], requests[row], uniforms[row])
        samplers[row].count(int(token))
        samples.append(Sample(int(token), value if requests[row].return_log_probs else None) if finite else None)
    return samples


def _on_device(logits: torch.Tensor, values: Sequence[Any], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Host values as a tensor on the device of ``logits``, without waiting for the device."""
    return torch.tensor(values, dtype=dtype).to(logits.device, non_blocking=True)


def _draw_from_all(
    logits: torch.Tensor, raw_logits: torch.Tensor, request: TurnRequest, uniform: float
) -> tuple[int, float]:
    """Sample a row whose nucleus is unusually large, by sorting the vocabulary; the token and its log-probability."""
    candidates, probabilities, _ = nucleus(logits.unsqueeze(0), [request], len(logits))
    drawn = draw(probabilities, _on_device(logits, [uniform]))
    token = candidates[0, drawn]
    return int(token), float(log_probability(raw_logits.unsqueeze(0), token))


def penalize_repetition(logits: torch.Tensor, tokens: Sequence[int], penalty: float) -> torch.Tensor:
    """Divide the positive logits [vocab] of ``tokens`` by ``penalty`` and multiply the negative ones, each once.

    Finite logits stay finite, whatever the penalty.
    """
    ids = _on_device(logits, list(set(tokens)), torch.int64)
    seen = logits[ids]
    penalized = torch.where(seen > 0, seen / penalty, seen * penalty)
    largest = torch.finfo(logits.dtype).max / 2  # differences of two are finite too
    return logits.index_copy(0, ids, torch.where(seen.isfinite(), penalized.clamp(-largest, largest), penalized))


def penalize_counts(logits: torch.Tensor, counts: Mapping[int, int], frequency: float, presence: float) -> torch.Tensor:
    """Subtract ``frequency`` from the logits [vocab] of tokens for each time in ``counts``, and ``presence`` once."""
    ids = _on_device(logits, list(counts), torch.int64)
    penalties = [-(frequency * count + presence) for count in counts.values()]
    return logits.index_add(0, ids, _on_device(logits, penalties, logits.dtype))


def _scaled(logits: torch.Tensor, requests: Sequence[TurnRequest]) -> torch.Tensor:
    """Logits minus their maximum, divided by temperature, which is clamped so that the quotient stays finite."""
    temperatures = [[max(request.temperature, SMALLEST_TEMPERATURE)] for request in requests]
    return (logits - logits.amax(-1, keepdim=True)) / _on_device(logits, temperatures, logits.dtype)


def distribution(logits: torch.Tensor, requests: Sequence[TurnRequest]) -> torch.Tensor:
    """Probabilities [N, vocab] of rows that have a temperature and neither top-k nor top-p."""
    return _scaled(logits, requests).softmax(-1)


def nucleus(
    logits: torch.Tensor, requests: Sequence[TurnRequest], count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids and probabilities [N, count] after temperature, then top-k, then top-p.

    Of the ``count`` most probable tokens in order of probability, top-p keeps the first ones whose sum reaches
    ``top_p``, and so always at least one. The third result [N] is whether ``count`` tokens were enough for that.
    """
    vocab_size = logits.shape[1]
    best, tokens = logits.topk(min(count, vocab_size))
    limits = [(request.top_k or vocab_size, request.top_p) for request in requests]
    top_k, top_p = _on_device(logits, limits).unsqueeze(2).unbind(1)
    rank = torch.arange(best.shape[1], device=best.device)
    best = _scaled(best, requests).masked_fill(rank >= top_k, -torch.inf)
    total = best.logsumexp(-1, keepdim=True)
    if not all(request.top_k for request in requests):  # without top-k, shares of the whole vocabulary
        total = torch.where(top_k < vocab_size, total, _scaled(logits, requests).logsumexp(-1, keepdim=True))
    probabilities = (best - total).exp()
    sums = probabilities.double().cumsum(-1)  # a cumsum that converts as it goes is ten times as slow
    complete = (sums[:, -1] >= top_p[:, 0]) | (top_k[:, 0] <= best.shape[1])
    kept = probabilities.masked_fill(sums - probabilities >= top_p, 0)
    return tokens, kept / kept.sum(-1, keepdim=True), complete


def draw(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Indices [N] into ``probabilities`` [N, count], by inverting their sums at ``uniforms`` [N] in [0, 1)."""
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding must not reach the total: the tokens after it have probability zero.
    sums = torch.minimum(uniforms.unsqueeze(1) * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, sums, right=True).squeeze(1).clamp(max=cumulative.shape[1] - 1)


def log_probability(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [N] (float64) of ``tokens`` [N] under ``logits`` [N, vocab]."""
    logits = logits.double()
    return logits.gather(1, tokens.unsqueeze(1)).squeeze(1) - logits.logsumexp(-1)
