from __future__ import annotations

import math

import pytest
import torch

from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnRequest
from trtstream.runtime.sampling import Sampler, distribution, draw, log_probability, penalize_repetition

PROBABILITIES = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = PROBABILITIES.log() + 7  # a shift changes nothing


def kept(temperature: float = 1.0, **limits: float) -> dict[int, float]:
    tokens, probabilities = distribution(LOGITS, temperature, **limits)
    return {int(t): float(p) for t, p in zip(tokens, probabilities, strict=True) if p > 0}


def sample(seed: int | None = 0, logits: torch.Tensor = LOGITS, count: int = 50, **request) -> list[int]:
    sampler = Sampler(TurnRequest(random_seed=seed, **request))
    return [sampler(logits) for _ in range(count)]


def test_greedy_takes_the_best():
    assert sample(count=3) == [1, 1, 1]


def test_top_k_keeps_the_best_and_renormalizes():
    assert kept(top_k=2) == pytest.approx({1: 4 / 7, 3: 3 / 7})
    assert len(kept(top_k=5)) == 5


@pytest.mark.parametrize(
    ("top_p", "tokens"),
    [(0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 3, 4}), (1e-9, {1}), (1.0, set(range(5)))],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, tokens):
    assert set(kept(top_p=top_p)) == tokens


@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_top_p_in_a_large_vocabulary(spread):
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * spread
    expected, total = [], 0.0
    for p, token in sorted(((p, token) for token, p in enumerate(logits.double().softmax(-1).tolist())), reverse=True):
        if total >= 0.9:
            break
        expected.append(token)
        total += p
    tokens, probabilities = distribution(logits, 1.0, top_p=0.9)
    assert tokens[probabilities > 0].tolist() == expected
    assert float(probabilities.sum()) == pytest.approx(1)


def test_a_token_of_probability_zero_is_never_drawn():
    probabilities = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    assert {draw(probabilities, generator) for _ in range(1000)} == {2}


def test_top_p_counts_what_top_k_left():
    assert set(kept(top_k=2, top_p=0.58)) == {1, 3}
    assert set(kept(top_k=2, top_p=0.57)) == {1}


def test_temperature_sharpens_and_flattens():
    cold = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    assert kept(0.5) == pytest.approx(dict(enumerate(cold.tolist())), rel=1e-5)
    assert kept(1e300) == pytest.approx(dict.fromkeys(range(5), 0.2))


@pytest.mark.parametrize("temperature", [1e-3, 1e-45, 5e-324])
def test_the_smallest_temperatures_are_greedy(temperature):
    assert set(sample(temperature=temperature)) == {1}


def test_frequencies_follow_the_distribution():
    drawn = torch.tensor(sample(count=20_000, temperature=1.0)).bincount(minlength=5) / 20_000
    assert torch.allclose(drawn, PROBABILITIES, atol=0.015)


def test_a_seed_fixes_the_tokens():
    assert sample(3, temperature=1.0) == sample(3, temperature=1.0)
    assert sample(3, temperature=1.0) != sample(4, temperature=1.0)
    assert sample(2**64 - 1, temperature=1.0) == sample(2**64 - 1, temperature=1.0)
    assert sample(None, temperature=1.0) != sample(None, temperature=1.0)


def test_repetition_penalty_counts_a_token_once():
    logits = torch.tensor([2.0, -2.0, 3.0, 1.0])
    assert penalize_repetition(logits, [0, 1, 0, 0], 2.0).tolist() == [1.0, -4.0, 3.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 3.0, 1.0]


def test_repetition_penalty_moves_the_choice():
    sampler = Sampler(TurnRequest(repetition_penalty=10.0))
    assert (sampler(LOGITS, []), sampler(LOGITS, [1])) == (1, 3)


def test_log_probability_is_the_models_own():
    assert log_probability(LOGITS, 3) == pytest.approx(math.log(0.3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(bad, temperature):
    with pytest.raises(TrtstreamError, match="logits are not finite"):
        sample(logits=torch.tensor([0.0, bad, 1.0]), temperature=temperature)
