"""Facts asked for with recall: what is asked and read again, and that a skipped stretch changes no answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trtstream.evaluation.engines import open_subject
from trtstream.evaluation.facts import PLACES, make_changes, make_facts, make_missing
from trtstream.evaluation.recall import Ask, listen
from trtstream.evaluation.tokens import TokenFile
from trtstream.evaluation.with_recall import Reader, _plan, _rows

DISTANCES = (40, 900)
WINDOW = 256


def ignore(done: int, total: int) -> None:
    pass


class Noting(Reader):
    """A session that notes at which token each question was asked, and what of it had left the window."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.asked: list[tuple[int, Ask, str]] = []

    def ask(self, ask: Ask) -> None:
        super().ask(ask)
        question = self._recaller.recalling.question(self._tokenizer.decode(ask.prompt), self.fed, 4, self._max_tokens)
        found = self._recaller.index.search(question)
        self.asked.append((self.fed, ask, " ".join(self._tokenizer.decode(part.span.ids) for part in found)))


def words(count: int) -> bytes:
    """Text without a word of any fact."""
    return b"".join(b"Word%d and more. " % number for number in range(count))[:count]


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    path = tmp_path / "ids"
    path.write_bytes(b"".join(byte.to_bytes(4, "little") for byte in words(4000)))
    return TokenFile(path)


def test_what_has_left_the_window_is_found(checkpoint: Path, tokens: TokenFile) -> None:
    subject = open_subject(checkpoint, None)
    engine = subject.engine(4, WINDOW)
    reader = Noting(engine, subject.tokenizer, 128)
    plan = [*_plan(subject.tokenizer, WINDOW, 5, DISTANCES)]
    listen(reader, engine.receptive_field, tokens, plan, ignore)
    scores = reader.scores
    assert {key: score.questions for key, score in scores.items()} == {
        (kind, distance): number
        for distance in DISTANCES
        for kind, number in (("plain", 5), ("paraphrased", 5), ("changed", 2), ("missing", 2))
    }
    planted = {
        tuple(fact.question): subject.tokenizer.decode(fact.planted).strip()
        for fact in make_facts(5, subject.tokenizer)
    }
    for _, ask, found in reader.asked:
        if ask.kind == "plain":
            assert (planted[tuple(ask.prompt)] in found) == (ask.distance == 900)
        if ask.distance == 900 and ask.kind == "paraphrased":
            assert any(text in found for text in planted.values())
    assert {row["kind"]: row["counted"] for row in _rows(scores)} == {
        "plain": "right", "paraphrased": "right", "changed": "right", "missing": "invented"
    }  # fmt: skip
    assert sum(score.tokens for (kind, distance), score in scores.items() if distance == 900) > 0


def test_a_skipped_stretch_gives_the_same_state(checkpoint: Path, tokens: TokenFile) -> None:
    subject = open_subject(checkpoint, None)
    ids = tokens.read(0, 3000).tolist()
    logits = []
    for skips in (False, True):
        engine = subject.engine(4, 64)
        reader = Reader(engine, subject.tokenizer, 128)
        reader.feed(ids[:100])
        if skips:
            reader.take(ids[100:])
            reader.rebuild(ids[-engine.receptive_field :])
        else:
            reader.feed(ids[100:])
        assert engine.position(0) == reader.fed == 3000
        logits.append(engine.prefill(0, [65]))
    assert torch.allclose(*logits, atol=1e-3)


def test_changed_and_missing_facts_are_others(checkpoint: Path) -> None:
    tokenizer = open_subject(checkpoint, None).tokenizer
    facts, missing = make_facts(128, tokenizer), make_missing(32, tokenizer)
    changes = make_changes(32, tokenizer)
    names = [tuple(fact.question) for fact in [*facts, *missing, *(later for _, later in changes)]]
    assert len({*names}) == 128 + 32 + 32
    for first, later in changes:
        assert first.question == later.question
        assert first.answer != later.answer
        assert tokenizer.decode(later.answer).strip() in PLACES
