"""``trtstream eval --recall``: which facts a window remembers, planted in a stream of text and asked for at growing
distances (StreamEval's idea).

Facts read "The brave otter lives in Rome." and the question is the sentence up to its last word. The answer is the
model's greedy continuation, and is right or wrong as a whole. A question leaves no trace in the session, so every fact
is asked for at every distance.

Where nothing is asked for longer than the model looks back, the state there is made as a session's is that is rebuilt
from the log: from the sinks and the last L (R - 1) + 1 tokens, which are all that shape it. So a distance of a million
tokens takes no longer than one of 20,000.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import count as numbers
from typing import TYPE_CHECKING, Any

from trtstream.errors import TrtstreamError
from trtstream.evaluation.engines import Subject
from trtstream.evaluation.facts import CHANCE, make_facts
from trtstream.evaluation.options import Options
from trtstream.evaluation.plot import plot_recall
from trtstream.evaluation.report import heading, print_recall
from trtstream.evaluation.runs import check_run, sizes_of
from trtstream.evaluation.scoring import Run
from trtstream.evaluation.tokens import TokenFile, temporary_tokens
from trtstream.progress import Progress, progress_bar
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.streaming_engine import StreamingEngine

if TYPE_CHECKING:
    from trtstream.runtime.tokenizer import Tokenizer

SPACING = 128  # tokens from one fact to the next
STEP = 2048  # tokens between two reports of progress


@dataclass(frozen=True)
class Ask:
    """``prompt`` is asked ``distance`` tokens after its fact. ``answer`` is right; any place, where it is empty."""

    kind: str
    distance: int
    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class Planting:
    """``ids`` come when ``at`` tokens have been fed; ``asks`` are asked at their distances from there."""

    at: int
    ids: list[int]
    asks: Sequence[Ask]


class Listener(ABC):
    """A session that reads text, ``fed`` tokens so far, and is asked questions."""

    def __init__(self, engine: StreamingEngine) -> None:
        self.fed = 0
        self._engine = engine
        self._sinks: list[int] = []
        engine.reset(0)

    def feed(self, ids: list[int]) -> None:
        self._engine.prefill(0, ids)
        self.take(ids)

    def take(self, ids: list[int]) -> None:
        """Read tokens that nothing is computed for: `rebuild` before the next ones."""
        self._sinks = (self._sinks + ids)[: self._engine.build.sink_token_length]
        self.fed += len(ids)

    def rebuild(self, last: list[int]) -> None:
        """Have the state that a session has whose last tokens are ``last``, which it has taken."""
        sinks = self._engine.build.sink_token_length
        state = SessionState(sinks, self.fed - len(last) + 1, [*self._sinks[:sinks], last[0]])
        self._engine.import_state(0, state)
        self._engine.prefill(0, last[1:])

    @abstractmethod
    def ask(self, ask: Ask) -> None:
        """Ask; the session stays as it is."""


def listen(listener: Listener, look_back: int, tokens: TokenFile, plan: Iterable[Planting], progress: Progress) -> None:
    """Read text in which the facts of ``plan`` are planted, and ask. An answer depends on ``look_back`` tokens."""
    order = numbers()
    # At which token, in which order there, and what.
    events: list[tuple[int, int, Planting | Ask]] = [(planting.at, next(order), planting) for planting in plan]
    heapq.heapify(events)
    read = 0  # of the text
    while events:
        at, _, event = heapq.heappop(events)
        skips = at - listener.fed > look_back
        while listener.fed < at:
            step = min(at - listener.fed, STEP)
            (listener.take if skips else listener.feed)(tokens.read(read, read + step).tolist())
            read += step
            progress(read, tokens.count)
        if skips:
            listener.rebuild(tokens.read(read - look_back, read).tolist())
        if isinstance(event, Ask):
            listener.ask(event)
        else:
            listener.feed(event.ids)
            for ask in event.asks:
                heapq.heappush(events, (listener.fed + ask.distance, next(order), ask))
    progress(tokens.count, tokens.count)


def evaluate_recall(options: Options, subject: Subject) -> dict[str, Any]:
    """Ask, print and draw; returns the report. Raises TrtstreamError for what cannot be done."""
    distances, facts = options.recall or [], options.facts
    sinks, window = sizes_of(options, subject)
    check_run(Run("recall", "streaming", sinks, window), subject, options.force)
    needed = tokens_needed(window, distances, facts)
    with temporary_tokens(options.text, subject.tokenizer, subject.model.vocab_size, needed) as ids:
        engine = subject.engine(sinks, window)
        with progress_bar("recall, tokens") as progress:
            answers = recall(engine, subject.tokenizer, ids, distances, facts, progress)
    print_recall(answers)
    if options.plot_file is not None:
        plot_recall(options.plot_file, options.title, answers, engine.build.ring, CHANCE)
    return {
        **heading(options, subject, ids.count),
        "sink_token_length": sinks,
        "max_attention_window": window,
        "chance": CHANCE,
        "recall": answers,
    }


def tokens_needed(window: int, distances: Sequence[int], count: int) -> int:
    """How many tokens of text `recall` streams at most."""
    return window + count * SPACING + max(distances)


def check_length(tokens: TokenFile, needed: int, distances: Sequence[int], count: int) -> None:
    """Raise TrtstreamError for a text of fewer than the ``needed`` tokens (`tokens_needed`)."""
    if tokens.count < needed:
        raise TrtstreamError(
            f"recall over {max(distances)} tokens with {count} facts streams {needed} tokens, and the text has "
            f"{tokens.count}; give a longer text, smaller distances or fewer --facts"
        )


def recall(
    engine: StreamingEngine,
    tokenizer: Tokenizer,
    tokens: TokenFile,
    distances: Sequence[int],
    count: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Stream text with ``count`` facts in it, and ask for each at each of the ``distances``.

    A distance is in tokens, from the fact's end to the question; it is exceeded by at most a fact's length, where
    another fact is being planted. The first fact comes when the window is full.
    """
    facts = make_facts(count, tokenizer)
    window = engine.build.max_attention_window
    check_length(tokens, tokens_needed(window, distances, count), distances, count)
    plan = [
        Planting(
            window + number * SPACING,
            fact.planted,
            [Ask("plain", distance, fact.question, fact.answer) for distance in distances],
        )
        for number, fact in enumerate(facts)
    ]
    right: Counter[int] = Counter()

    class Answers(Listener):
        def ask(self, ask: Ask) -> None:
            right[ask.distance] += greedy(engine, ask.prompt, len(ask.answer)) == ask.answer

    listen(Answers(engine), engine.receptive_field, tokens, plan, progress)
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


def greedy(
    engine: StreamingEngine, prompt: Sequence[int], count: int, lane: int = 0, ends: Collection[int] = ()
) -> list[int]:
    """The ``count`` ids with which the model continues, or up to one of ``ends``; the session stays as it is."""
    engine.begin_turn(lane)
    try:
        said = [int(engine.prefill(lane, prompt).argmax())]
        while len(said) < count and said[-1] not in ends:
            said.append(int(engine.prefill(lane, said[-1:]).argmax()))
        return said
    finally:
        engine.rollback_turn(lane)
