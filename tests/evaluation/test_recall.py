"""Recall: what a window remembers, and that asking does not disturb it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.runtime.clients import byte_tokenizer
from trtstream.evaluation.engines import Subject, open_subject
from trtstream.evaluation.facts import make_facts
from trtstream.evaluation.recall import recall, tokens_needed
from trtstream.evaluation.tokens import TokenFile, tokenize
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.samples.gpl import GPL

DISTANCES = (20, 40, 300)


def ignore(done: int, total: int) -> None:
    pass


def stream(subject: Subject, folder: Path, window: int, facts: int) -> TokenFile:
    needed = tokens_needed(window, DISTANCES, facts)
    return tokenize(GPL, subject.tokenizer, subject.model.vocab_size, folder / "ids", needed)


@pytest.mark.slow
def test_smollm2_remembers_its_window(smollm2_engine: Path, tmp_path: Path) -> None:
    subject = open_subject(smollm2_engine, None)
    engine = subject.engine(4, 128)
    text = stream(subject, tmp_path, engine.build.max_attention_window, 8)
    answers = recall(engine, subject.tokenizer, text, DISTANCES, 8, ignore)
    assert [answer["in_window"] for answer in answers] == [True, True, False]
    inside = sum(answer["right"] for answer in answers[:2]) / 2
    assert inside >= 4  # of 8
    assert inside >= 3 * answers[2]["right"]


class Recorder:
    """An engine that notes what its stream is fed, and what the session saw of it at each question."""

    def __init__(self, engine: StreamingEngine) -> None:
        self.engine = engine
        self.build = engine.build
        self.receptive_field = engine.receptive_field
        self.fed: list[int] = []
        self.asked: list[tuple[int, list[int]]] = []  # at which token, and what
        self._asking = False

    def reset(self, lane: int) -> None:
        self.engine.reset(lane)

    def prefill(self, lane: int, tokens: list[int]) -> torch.Tensor:
        if not self._asking:
            self.fed += tokens
        elif self.asked[-1][1] == []:
            self.asked[-1][1].extend(tokens)
        return self.engine.prefill(lane, tokens)

    def begin_turn(self, lane: int) -> None:
        assert self.engine.position(lane) == len(self.fed)
        self._asking = True
        self.asked.append((len(self.fed), []))
        self.engine.begin_turn(lane)

    def rollback_turn(self, lane: int) -> None:
        self._asking = False
        self.engine.rollback_turn(lane)


def test_facts_are_asked_for_at_their_distances(checkpoint: Path, tmp_path: Path) -> None:
    subject = open_subject(checkpoint, None)
    engine = Recorder(subject.engine(4, 128))  # which looks back further than there is between two events
    tokens = stream(subject, tmp_path, 128, 5)
    recall(engine, subject.tokenizer, tokens, DISTANCES, 5, ignore)

    def find(part: list[int]) -> int:
        return next(i for i in range(len(engine.fed)) if engine.fed[i : i + len(part)] == part)

    facts = make_facts(5, byte_tokenizer())
    longest = max(len(fact.planted) for fact in facts)
    rest = list(engine.fed)
    for fact in facts:
        end = find(fact.planted) + len(fact.planted)
        distances = [at - end for at, question in engine.asked if question == fact.question]
        assert len(distances) == len(DISTANCES)
        for distance, wanted in zip(distances, DISTANCES, strict=True):
            assert wanted <= distance < wanted + longest
        start = next(i for i in range(len(rest)) if rest[i : i + len(fact.planted)] == fact.planted)
        del rest[start : start + len(fact.planted)]
    assert rest == tokens.read(0, len(rest)).tolist()  # the text, and nothing of the questions
    assert subject.tokenizer.decode(facts[0].question + facts[0].answer + [ord("."), ord("\n")]) == (
        subject.tokenizer.decode(facts[0].planted)
    )
    assert engine.engine.visible_tokens(0) == engine.fed[:4] + engine.fed[-124:]
    fresh = subject.engine(4, 128)
    fresh.prefill(0, engine.fed)
    after = [e.prefill(0, [65]) for e in (engine.engine, fresh)]
    assert torch.allclose(*after, atol=1e-3)


def test_every_fact_has_its_own_animal() -> None:
    facts = make_facts(256, byte_tokenizer())
    assert len({tuple(fact.question) for fact in facts}) == 256


@pytest.mark.parametrize("count", [1, 256])
def test_facts_are_the_same_every_time(count: int) -> None:
    first, second = (make_facts(count, byte_tokenizer()) for _ in range(2))
    assert [fact.planted for fact in first] == [fact.planted for fact in second]
