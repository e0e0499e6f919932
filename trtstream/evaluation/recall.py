"""What a window remembers: facts planted in a stream of text, asked about at growing distances (StreamEval's idea).

Facts read "The brave otter lives in Rome." and the question is the sentence up to its last word. The answer is what the
model says greedily, and is right or wrong as a whole. Asking leaves no trace in the session, so every fact is asked
about at every distance.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from trtstream.errors import TrtstreamError
from trtstream.evaluation.tokens import TokenFile
from trtstream.progress import Progress
from trtstream.runtime.streaming_engine import StreamingEngine

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
SPACING = 128  # tokens from one fact to the next
STEP = 2048  # tokens from one word of progress to the next


class Fact:
    """One fact, tokenized: ``planted`` is fed to the stream, ``question`` asked, ``answer`` right."""

    def __init__(self, name: str, place: str, tokenizer: PreTrainedTokenizerBase) -> None:
        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        question = f"\nThe {name} lives in"
        self.planted = encode(f"{question} {place}.\n")
        self.question = encode(question)
        # Not encode(place): what a word's tokens are depends on what stands before it.
        self.answer = encode(f"{question} {place}")[len(self.question) :]


def make_facts(count: int, tokenizer: PreTrainedTokenizerBase) -> list[Fact]:
    """The same ``count`` facts every time, about as many animals."""
    rng = random.Random(0)
    names = [f"{manner} {animal}" for manner in MANNERS for animal in ANIMALS]
    rng.shuffle(names)
    return [Fact(name, rng.choice(PLACES), tokenizer) for name in names[:count]]


def tokens_needed(window: int, distances: Sequence[int], count: int) -> int:
    """How many tokens of text `recall` streams at most."""
    return window + count * SPACING + max(distances)


def recall(
    engine: StreamingEngine,
    tokenizer: PreTrainedTokenizerBase,
    tokens: TokenFile,
    distances: Sequence[int],
    count: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Stream text with ``count`` facts in it, and ask about each at each of the ``distances``.

    A distance is in tokens, from the fact's end to the question; it is exceeded by at most a fact's length, where
    another fact is just being planted. The first fact comes when the window is full.
    """
    facts = make_facts(count, tokenizer)
    window = engine.build.max_attention_window
    needed = tokens_needed(window, distances, count)
    if tokens.count < needed:
        raise TrtstreamError(
            f"recall over {max(distances)} tokens with {count} facts streams {needed} tokens, and the text has "
            f"{tokens.count}; give a longer text, smaller distances or fewer --facts"
        )
    engine.reset(0)
    right: Counter[int] = Counter()
    fed = read = 0  # tokens of the stream, and of the text
    # What to do, at which token: plant a fact (distance 0), or ask about it.
    events = [(window + number * SPACING, number, 0) for number in range(count)]
    while events:
        at, number, distance = heapq.heappop(events)
        while fed < at:
            step = min(at - fed, STEP)
            engine.prefill(0, tokens.read(read, read + step).tolist())
            read, fed = read + step, fed + step
            progress(read, needed)
        fact = facts[number]
        if distance == 0:
            engine.prefill(0, fact.planted)
            fed += len(fact.planted)
            for distance in distances:
                heapq.heappush(events, (fed + distance, number, distance))
        else:
            right[distance] += _answers(engine, fact)
    progress(needed, needed)
    longest = max(len(fact.planted) + len(fact.question) for fact in facts)
    return [
        {
            "distance": distance,
            "in_window": distance + longest <= engine.build.ring,
            "questions": count,
            "right": right[distance],
            "accuracy": right[distance] / count,
        }
        for distance in sorted(distances)
    ]


def _answers(engine: StreamingEngine, fact: Fact) -> bool:
    """Whether the model goes on from the question with the answer; the session stays as it is."""
    engine.begin_turn(0)
    try:
        logits = engine.prefill(0, fact.question)
        for token in fact.answer:
            if int(logits.argmax()) != token:
                return False
            logits = engine.prefill(0, [token])
        return True
    finally:
        engine.rollback_turn(0)
