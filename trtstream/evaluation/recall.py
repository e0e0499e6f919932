"""``trtstream eval --recall``: which facts a window remembers, planted in a stream of text and asked for at growing
distances (StreamEval's idea).

Facts read "The brave otter lives in Rome." and the question is the sentence up to its last word. The answer is the
model's greedy continuation, and is right or wrong as a whole. A question leaves no trace in the session, so every fact
is asked for at every distance.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
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
from trtstream.runtime.streaming_engine import StreamingEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACING = 128  # tokens from one fact to the next
STEP = 2048  # tokens between two reports of progress


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
    tokenizer: PreTrainedTokenizerBase,
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
    needed = tokens_needed(window, distances, count)
    check_length(tokens, needed, distances, count)
    engine.reset(0)
    right: Counter[int] = Counter()
    fed = read = 0  # tokens of the stream, and of the text
    # At which token, which fact, and at what distance it is asked for; distance 0 plants it.
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
            right[distance] += greedy(engine, fact.question, len(fact.answer)) == fact.answer
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


def greedy(engine: StreamingEngine, prompt: Sequence[int], count: int) -> list[int]:
    """The ``count`` ids with which the model continues; the session stays as it is."""
    engine.begin_turn(0)
    try:
        said = [int(engine.prefill(0, prompt).argmax())]
        while len(said) < count:
            said.append(int(engine.prefill(0, said[-1:]).argmax()))
        return said
    finally:
        engine.rollback_turn(0)
