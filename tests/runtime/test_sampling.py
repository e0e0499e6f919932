from __future__ import annotations

import math

import pytest
import torch

from trtstream.runtime.requests import TurnRequest
from trtstream.runtime.sampling import (
    USUAL_NUCLEUS,
    Sampler,
    draw,
    log_probability,
    nucleus,
    penalize_counts,
    penalize_repetition,
    sample,
)

PROBABILITIES = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = PROBABILITIES.log() + 7  # a shift changes nothing

REQUESTS = [
    TurnRequest(random_seed=1, **fields)
    for fields in (
        {},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.5, "top_p": 0.5},  # more than USUAL_NUCLEUS tokens
        {"temperature": 1.5, "top_p": 0.9, "top_k": 900, "return_log_probs": True},
        {"repetition_penalty": 1.3, "return_log_probs": True},
        {"temperature": 1.0, "repetition_penalty": 1.3, "top_p": 0.999, "return_log_probs": True},
        {"frequency_penalty": 0.5, "presence_penalty": -0.25, "return_log_probs": True},
    )
]


def kept(temperature: float = 1.0, **limits: float) -> dict[int, float]:
    request = TurnRequest(temperature=temperature, **limits)
    tokens, probabilities, complete = nucleus(LOGITS[None], [request], len(LOGITS))
    assert complete
    return {int(t): float(p) for t, p in zip(tokens[0], probabilities[0], strict=True) if p > 0}


def draws(seed: int | None = 0, logits: torch.Tensor = LOGITS, count: int = 50, **request) -> list[int]:
    sampler = Sampler(TurnRequest(random_seed=seed, **request))
    return [sample(logits[None], [sampler], [()])[0].token for _ in range(count)]


def test_greedy_takes_the_best():
    assert draws(count=3) == [1, 1, 1]


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
    request = TurnRequest(temperature=1.0, top_p=0.9)
    tokens, probabilities, _ = nucleus(logits[None], [request], len(logits))
    assert tokens[probabilities > 0].tolist() == expected
    assert float(probabilities.sum()) == pytest.approx(1)
    # The last of the nucleus: with a flat distribution it is not among the usual number of candidates.
    assert nucleus(logits[None], [request], USUAL_NUCLEUS)[2] == (len(expected) <= USUAL_NUCLEUS)
    sampler = Sampler(request)
    sampler.uniform = lambda: math.nextafter(1, 0)
    assert sample(logits[None], [sampler], [()])[0].token == expected[-1]


def test_a_token_of_probability_zero_is_never_drawn():
    probabilities = torch.tensor([0.0, 0.0, 0.7, 0.0], dtype=torch.float64)
    points = torch.tensor([0.0, 1e-300, 0.5, math.nextafter(1, 0)], dtype=torch.float64)
    assert draw(probabilities.expand(4, 4), points).tolist() == [2, 2, 2, 2]


def test_top_p_counts_what_top_k_left():
    assert set(kept(top_k=2, top_p=0.58)) == {1, 3}
    assert set(kept(top_k=2, top_p=0.57)) == {1}


def test_temperature_sharpens_and_flattens():
    cold = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    assert kept(0.5) == pytest.approx(dict(enumerate(cold.tolist())), rel=1e-5)
    assert kept(1e300) == pytest.approx(dict.fromkeys(range(5), 0.2))


@pytest.mark.parametrize("temperature", [1e-3, 1e-45, 5e-324])
def test_the_smallest_temperatures_are_greedy(temperature):
    assert set(draws(temperature=temperature)) == {1}


def test_frequencies_follow_the_distribution():
    drawn = torch.tensor(draws(count=20_000, temperature=1.0)).bincount(minlength=5) / 20_000
    assert torch.allclose(drawn, PROBABILITIES, atol=0.015)


def test_a_seed_fixes_the_tokens():
    assert draws(3, temperature=1.0) == draws(3, temperature=1.0)
    assert draws(3, temperature=1.0) != draws(4, temperature=1.0)
    assert draws(2**64 - 1, temperature=1.0) == draws(2**64 - 1, temperature=1.0)
    assert draws(None, temperature=1.0) != draws(None, temperature=1.0)


def test_repetition_penalty_counts_a_token_once():
    logits = torch.tensor([2.0, -2.0, 3.0, 1.0])
    assert penalize_repetition(logits, [0, 1, 0, 0], 2.0).tolist() == [1.0, -4.0, 3.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 3.0, 1.0]


def test_repetition_penalty_moves_the_choice():
    sampler = Sampler(TurnRequest(repetition_penalty=10.0))
    choices = sample(torch.stack((LOGITS, LOGITS)), [sampler, sampler], [[], [1]])
    assert [choice.token for choice in choices] == [1, 3]


def test_penalties_count_what_was_sampled():
    logits = torch.tensor([2.0, -2.0, 3.0, 1.0])
    assert penalize_counts(logits, {0: 3, 1: 1}, 0.5, 0.25).tolist() == [0.25, -2.75, 3.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 3.0, 1.0]


def test_frequency_and_presence_penalty_move_the_choice():
    """Of logits a whole number apart, the greedy choice falls back to the best once it is penalized less."""
    logits = torch.tensor([3.0, 2.25, 0.5])
    assert draws(logits=logits, count=6, frequency_penalty=0.5) == [0, 0, 1, 0, 1, 0]
    assert draws(logits=logits, count=4, presence_penalty=1.0) == [0, 1, 0, 0]
    assert draws(logits=torch.tensor([3.0, 2.25]), count=3, frequency_penalty=-2.0) == [0, 0, 0]


def test_log_probability_is_the_models_own():
    assert log_probability(LOGITS[None], torch.tensor([3])).item() == pytest.approx(math.log(0.3))
    asked = TurnRequest(return_log_probs=True, repetition_penalty=10.0)
    choices = sample(torch.stack((LOGITS, LOGITS)), [Sampler(asked), Sampler(TurnRequest())], [[1], []])
    assert [choice.log_probability for choice in choices] == [pytest.approx(math.log(0.3)), None]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("request_", REQUESTS)
def test_logits_that_are_not_finite_give_no_token(bad, request_):
    logits = torch.stack((torch.tensor([0.0, bad, 1.0]), torch.tensor([0.0, 2.0, 1.0])))
    samples = sample(logits, [Sampler(request_), Sampler(TurnRequest())], [(), ()])
    assert (samples[0], samples[1].token) == (None, 1)


def test_a_batch_of_different_requests_samples_each_as_if_alone():
    logits = torch.randn(len(REQUESTS), 3000, generator=torch.Generator().manual_seed(1))
    visible = [range(row, 100 * row) for row in range(len(REQUESTS))]
    batch, single = ([Sampler(request) for request in REQUESTS] for _ in range(2))
    for _ in range(20):
        together = sample(logits, batch, visible)
        alone = [
            sample(row[None], [sampler], [seen])[0] for row, sampler, seen in zip(logits, single, visible, strict=True)
        ]
        assert together == alone
