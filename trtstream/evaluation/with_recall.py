"""``trtstream eval --recall --with-recall``: facts that have left the window, asked for with recall and without.

Text with facts in it is one long turn, all of which is indexed. A question is asked of the session's state at that
point.

Four kinds of questions: ``plain`` repeats the fact up to its last word, ``paraphrased`` asks in other words,
``changed`` is about a fact that was planted twice with different places, of which the later counts, and ``missing``
about one that was not planted: there an answer that names a place is invented, and counted as that. Each fact is among
as many others of its form as there are ``--facts``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtstream.evaluation.engines import Subject
from trtstream.evaluation.facts import CHANCE, PLACES, make_changes, make_facts, make_missing
from trtstream.evaluation.options import Options
from trtstream.evaluation.recall import SPACING, Ask, Listener, Planting, check_length, greedy, listen, tokens_needed
from trtstream.evaluation.report import heading, print_with_recall
from trtstream.evaluation.runs import check_run, sizes_of
from trtstream.evaluation.scoring import Run
from trtstream.evaluation.tokens import temporary_tokens
from trtstream.progress import progress_bar
from trtstream.runtime.encoding import text_of
from trtstream.runtime.recalling import Block, Recalling
from trtstream.runtime.scheduler_limits import SchedulerLimits
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.sessions.recall import SpanIndex

if TYPE_CHECKING:
    from trtstream.runtime.tokenizer import Tokenizer

FEWER = 4  # plain facts for each changed one and each missing one
MAX_ANSWER = 6  # tokens in which a place is looked for


@dataclass
class Score:
    """How many answers to the ``questions`` were right (of ``missing`` facts: invented) ``without`` recall and with.

    Recall read ``tokens`` again.
    """

    questions: int = 0
    without: int = 0
    recalled: int = 0
    tokens: int = 0


class Recaller:
    """An index of what a session of ``engine`` has read, and what of it a text makes the session read again."""

    def __init__(self, engine: StreamingEngine, tokenizer: Tokenizer) -> None:
        template = SchedulerLimits().recall_template
        self.recalling = Recalling(tokenizer, engine.model.vocab_size, engine.build.ring, template)
        self.index = SpanIndex(self.recalling.vocabulary)
        self._sinks = engine.build.sink_token_length

    def block(self, text: str, position: int, max_tokens: int, before: str = "") -> Block | None:
        """What a turn of this text reads again in a session that has been fed ``position`` tokens."""
        question = self.recalling.question(text, position, self._sinks, max_tokens, before)
        return None if question is None else self.recalling.block(self.index.search(question))


class Reader(Listener):
    """A session that reads text, all of which is indexed, and is asked without recall and with it."""

    def __init__(self, engine: StreamingEngine, tokenizer: Tokenizer, max_tokens: int) -> None:
        super().__init__(engine)
        self.scores: dict[tuple[str, int], Score] = {}
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._recaller = Recaller(engine, tokenizer)
        self._unindexed: list[int] = []

    def take(self, ids: list[int]) -> None:
        super().take(ids)
        self._unindexed += ids

    def _index_spans(self) -> None:
        """All but the last, which may go on."""
        first = self.fed - len(self._unindexed)
        spans = [*self._recaller.recalling.vocabulary.cutter.cut(first, self._unindexed)]
        count = spans[-1].first - first if spans else 0
        if count:
            self._recaller.index.add(first.to_bytes(16, "big"), first, self._unindexed[:count])
            self._unindexed = self._unindexed[count:]

    def ask(self, ask: Ask) -> None:
        self._index_spans()
        score = self.scores.setdefault((ask.kind, ask.distance), Score())
        without = self._counts([*ask.prompt], ask)
        block = self._recaller.block(self._tokenizer.decode([*ask.prompt]), self.fed, self._max_tokens)
        again = [] if block is None else block.ids(self._tokenizer, text_of(self._tokenizer, self._unindexed[-1]))
        score.questions += 1
        score.without += without
        score.recalled += self._counts([*again, *ask.prompt], ask) if again else without
        score.tokens += len(again)

    def _counts(self, prompt: list[int], ask: Ask) -> bool:
        said = greedy(self._engine, prompt, len(ask.answer) or MAX_ANSWER)
        if ask.answer:
            return said == [*ask.answer]
        return self._tokenizer.decode(said).strip().startswith(PLACES)


def evaluate_with_recall(options: Options, subject: Subject) -> dict[str, Any]:
    """Ask and print; returns the report. Raises TrtstreamError for what cannot be done."""
    assert options.recall is not None, "the command evaluates something else"
    assert options.with_recall is not None, "likewise"
    sinks, window = sizes_of(options, subject)
    check_run(Run("recall", "streaming", sinks, window), subject, options.force)
    needed = tokens_needed(window, options.recall, options.facts)
    with temporary_tokens(options.text, subject.tokenizer, subject.model.vocab_size, needed) as ids:
        check_length(ids, needed, options.recall, options.facts)
        engine = subject.engine(sinks, window)
        reader = Reader(engine, subject.tokenizer, options.with_recall)
        plan = _plan(subject.tokenizer, engine.build.max_attention_window, options.facts, options.recall)
        with progress_bar("recall, tokens") as progress:
            listen(reader, engine.receptive_field, ids, plan, progress)
    rows = _rows(reader.scores)
    print_with_recall(rows)
    return {
        **heading(options, subject, ids.count),
        "sink_token_length": sinks,
        "max_attention_window": window,
        "chance": CHANCE,
        "recall_tokens": options.with_recall,
        "with_recall": rows,
    }


def _rows(scores: Mapping[tuple[str, int], Score]) -> list[dict[str, Any]]:
    return [
        {
            "kind": kind,
            "distance": distance,
            "questions": score.questions,
            "counted": "invented" if kind == "missing" else "right",
            "without_recall": score.without,
            "with_recall": score.recalled,
            "tokens_read_again": score.tokens / score.questions,
        }
        for (kind, distance), score in sorted(scores.items())
    ]


def _plan(tokenizer: Tokenizer, window: int, count: int, distances: Sequence[int]) -> Iterator[Planting]:
    fewer = -(-count // FEWER)
    changes, missing = make_changes(fewer, tokenizer), make_missing(fewer, tokenizer)
    for number, fact in enumerate(make_facts(count, tokenizer)):
        at = window + number * SPACING
        asks = [Ask("plain", d, fact.question, fact.answer) for d in distances]
        asks += [Ask("paraphrased", d, fact.paraphrase, fact.answer) for d in distances]
        if number % FEWER == 0:
            first, later = changes[number // FEWER]
            changed = [Ask("changed", d, later.question, later.answer) for d in distances]
            yield Planting(at + SPACING // 4, first.planted, [])
            yield Planting(at + SPACING // 2, later.planted, changed)
            asks += [Ask("missing", d, missing[number // FEWER].question, ()) for d in distances]
        yield Planting(at, fact.planted, asks)
