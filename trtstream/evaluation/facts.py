"""The facts of `trtstream.evaluation.recall`: short sentences, each about another animal."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtstream.runtime.tokenizer import Tokenizer


MANNERS = (
    "bold", "brave", "calm", "eager", "fancy", "gentle", "happy", "jolly",
    "kind", "lively", "merry", "nice", "proud", "silly", "witty", "zany",
)  # fmt: skip
ANIMALS = (
    "badger", "beaver", "camel", "donkey", "eagle", "falcon", "gopher", "heron",
    "iguana", "jackal", "lemur", "marmot", "otter", "panda", "rabbit", "wolf",
)  # fmt: skip
PLACES = (
    "Athens", "Berlin", "Cairo", "Delhi", "Dublin", "Lisbon", "London", "Madrid",
    "Moscow", "Oslo", "Paris", "Prague", "Rome", "Tokyo", "Vienna", "Warsaw",
)  # fmt: skip
CHANCE = 1 / len(PLACES)


class Fact:
    """A fact, as token ids: ``planted`` is fed to the stream, ``question`` is asked, ``answer`` is right.

    ``paraphrase`` asks in other words, and has the same answer.
    """

    def __init__(self, name: str, place: str, tokenizer: Tokenizer) -> None:
        def encode(text: str) -> list[int]:
            return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

        question = f"\nThe {name} lives in"
        self.paraphrase = encode(f"\nQuestion: In which city is the home of the {name}?\nAnswer:")
        self.planted = encode(f"{question} {place}.\n")
        self.question = encode(question)
        # Not encode(place): a word's tokens depend on the text before it.
        self.answer = encode(f"{question} {place}")[len(self.question) :]


def make_changes(count: int, tokenizer: Tokenizer) -> list[tuple[Fact, Fact]]:
    """At most 64 facts, none of them among the first 128 of `make_facts`: each with its place at first, and later."""
    rng = random.Random(1)
    places = (rng.sample(PLACES, 2) for _ in range(count))
    return [
        (Fact(name, first, tokenizer), Fact(name, second, tokenizer))
        for name, (first, second) in zip(_names()[-count:], places, strict=True)
    ]


def make_missing(count: int, tokenizer: Tokenizer) -> list[Fact]:
    """At most 64 others, which are not to be planted."""
    return [Fact(name, PLACES[0], tokenizer) for name in _names()[-64 - count : -64]]


def make_facts(count: int, tokenizer: Tokenizer) -> list[Fact]:
    """The same ``count`` facts every time, at most 256."""
    rng = random.Random(0)
    names = _names(rng)
    return [Fact(name, rng.choice(PLACES), tokenizer) for name in names[:count]]


def _names(rng: random.Random | None = None) -> list[str]:
    names = [f"{manner} {animal}" for manner in MANNERS for animal in ANIMALS]
    (rng or random.Random(0)).shuffle(names)
    return names
