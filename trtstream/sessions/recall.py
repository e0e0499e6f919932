"""Which of a conversation's earlier words a turn should read again: an index of the log, and its search.

An index is a cache of the log. It has the spans of one branch of turns, in a private SQLite database with FTS5, and is
made when first asked for. Where the branch has changed since, because its session went back, the index follows.
"""

from __future__ import annotations

import math
import re
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from trtstream.sessions.function_words import FUNCTION_WORDS
from trtstream.sessions.records import TOKEN_TYPE, Recalled, TurnRecord
from trtstream.sessions.spans import Cutter, Span

if TYPE_CHECKING:
    from trtstream.sessions.turn_log import TurnLog

MAX_INDEXES = 64  # the least recently used leave
BATCH = 256  # turns that are read and added at once
MAX_WORDS = 32  # of a text, function words aside, that are searched: its last ones, as questions end texts
COMMON = 512  # spans: a word in as many says little, and takes long to search
MAX_MATCHES = 2048  # of all words, the rarest first
MIN_SHARE = 0.32  # of the weight of the question's words that are here, for a span to be worth its tokens
NEARLY_BEST = 0.95
RARE = 0.7  # of the rarest word's weight: two such words side by side name one thing
BEST = 32  # spans whose lengths are looked at
MANY = 3  # rare words: a span needs two of them where a text has this many
FEW = 3  # words: so short a text refers to the one before, as one with these words does
REFERRING = {
    "he", "she", "it", "they", "him", "her", "them", "his", "hers", "its", "their", "theirs",
    "this", "that", "these", "those", "there", "then",
}  # fmt: skip
SATURATION, LENGTH_WEIGHT = 1.2, 0.5  # bm25's k1 and b
WORD = re.compile(r"\w+")
NEIGHBOURS = re.compile(r"\b(\w+)(?=\s(\w+))")
ROLES = {"system", "user", "assistant"}  # which templates write in front of messages


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, as far as an index needs it. ``decode`` gets several texts' ids, and returns the texts."""

    cutter: Cutter
    decode: Callable[[Sequence[Sequence[int]]], Sequence[str]]


@dataclass(frozen=True)
class Found:
    """A span of a conversation's ``turn``-th turn, from 1 on."""

    turn: int
    span: Span


@dataclass(frozen=True)
class Question:
    """What to search for: what ``text`` may refer to, at most ``max_tokens`` tokens of it.

    Where the text refers to the one ``before`` it, that one's words are searched too. The session has been fed
    ``position`` tokens, of which it sees the first ``sink_token_length`` and the last ``ring`` - 1. Each span beyond
    the first takes ``gap`` tokens more.
    """

    text: str
    position: int
    sink_token_length: int
    ring: int
    max_tokens: int
    gap: int = 0
    before: str = ""

    def searched(self) -> str:
        """The text, behind the one before where it says "it" or little."""
        words = _words(self.text)
        return f"{self.before}\n{self.text}" if len(words) <= FEW or REFERRING.intersection(words) else self.text


@dataclass(frozen=True)
class Candidate:
    """A span that has the ``words`` of a question, a bit for each. ``rank`` is how good it is, more is better."""

    row: int
    found: Found
    text: str
    words: int
    rank: float
    is_visible: bool


class SpanIndex:
    """The spans of one conversation in their order. Used by one thread at a time, which may be any."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.turns: list[bytes] = []
        self.is_closed = False
        self._vocabulary = vocabulary
        self._rows = self._tokens = 0
        self._ends: list[tuple[int, int]] = []  # rows and tokens after each turn
        self._recalled: list[Recalled | None] = []  # in each turn
        self._common: set[str] = set()  # words that were searched and found to be
        # Private, on the disk where it grows beyond SQLite's cache, and gone once it is closed.
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.execute("CREATE VIRTUAL TABLE words USING fts5(text, tokenize='porter unicode61')")
        self._database.execute("CREATE TABLE spans (row INTEGER PRIMARY KEY, turn INTEGER, first INTEGER, ids BLOB)")

    def close(self) -> None:
        self._database.close()
        self.is_closed = True

    def follow(self, turn: TurnRecord, log: TurnLog) -> None:
        """Have the spans of ``turn`` and of those before it, and no others."""
        if self.turns and self.turns[-1] == turn.id:
            return
        if self.turns and self.turns[-1] == turn.parent:
            self._add_turns([turn])
            return
        branch = log.branch_ids(turn.id)
        same = 0
        while same < min(len(branch), len(self.turns)) and branch[same] == self.turns[same]:
            same += 1
        self._cut_back(same)
        for first in range(same, len(branch), BATCH):
            self._add_turns(log.turns(branch[first : first + BATCH]))

    def _add_turns(self, turns: Sequence[TurnRecord]) -> None:
        for turn in turns:
            first = turn.start + (turn.parent is not None)  # the token before is the end of the last turn's answer
            self.add(turn.id, first, [*turn.tokens, turn.pending][first - turn.start :], turn.recalled)

    def add(self, turn: bytes, first: int, tokens: Sequence[int], recalled: Recalled | None = None) -> None:
        """Add a turn behind the others: tokens from the position ``first`` on. Those ``recalled`` are left out."""
        self._database.execute("BEGIN")
        if recalled is None:
            self._add_spans(first, tokens)
        else:
            self._add_spans(first, tokens[: recalled.first - first])
            self._add_spans(recalled.end, tokens[recalled.end - first :])
        self._database.execute("COMMIT")
        self.turns.append(turn)
        self._ends.append((self._rows, self._tokens))
        self._recalled.append(recalled)

    def _add_spans(self, first: int, tokens: Sequence[int]) -> None:
        spans = [*self._vocabulary.cutter.cut(first, tokens)]
        texts = self._vocabulary.decode([span.ids for span in spans])
        number = len(self.turns) + 1
        for span, text in zip(spans, texts, strict=True):
            self._rows += 1
            self._tokens += len(span.ids)
            ids = np.asarray(span.ids, TOKEN_TYPE).tobytes()
            self._database.execute("INSERT INTO spans VALUES (?, ?, ?, ?)", (self._rows, number, span.first, ids))
            self._database.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (self._rows, text))

    def _cut_back(self, count: int) -> None:
        """Forget all turns but the first ``count``."""
        del self.turns[count:], self._ends[count:], self._recalled[count:]
        self._common.clear()
        self._rows, self._tokens = self._ends[-1] if self._ends else (0, 0)
        self._database.execute("DELETE FROM spans WHERE row > ?", (self._rows,))
        self._database.execute("DELETE FROM words WHERE rowid > ?", (self._rows,))

    def search(self, question: Question) -> list[Found]:
        """The spans that are worth reading again, in their old order; neighbours are one.

        Nothing that the session still sees is among them, be it the span itself or a copy that an earlier turn was fed.
        Nor is there anything where it sees a span that is as good, or has the same words of the question.
        """
        candidates = self._candidates(question)
        best = max((candidate.rank for candidate in candidates), default=0.0)
        nearly = [candidate for candidate in candidates if candidate.rank >= NEARLY_BEST * best]
        visible = [candidate.words for candidate in candidates if candidate.is_visible]
        if any(candidate.is_visible for candidate in nearly):
            return []
        kept: list[Candidate] = []
        for candidate in sorted(nearly, key=lambda candidate: -candidate.row):
            is_seen = any(candidate.words | words == words for words in visible)
            if not is_seen and not any(_says_again(later.text, candidate.text) for later in kept):
                kept.append(candidate)
        chosen: dict[int, Found] = {}
        left = question.max_tokens
        for candidate in sorted(kept, key=lambda candidate: (candidate.rank, candidate.row), reverse=True):
            if len(candidate.found.span.ids) <= left:
                chosen[candidate.row] = candidate.found
                left -= len(candidate.found.span.ids) + question.gap
        return _merged([chosen[row] for row in sorted(chosen)])

    def _candidates(self, question: Question) -> list[Candidate]:
        """The spans with enough of the question's words that say more than it does, seen or not."""
        text = question.searched()
        matches, scores, enough = self._matches(text)
        first_visible = question.position - question.ring + 1
        seen = [range(question.sink_token_length), range(first_visible, question.position + 1)]
        for recalled in reversed(self._recalled):
            if recalled is not None and recalled.first >= first_visible:
                seen += [range(first, end) for _, first, end in recalled.spans]
        known = ROLES.union(_words(text))
        candidates: list[Candidate] = []
        worth = [(scores[held], row) for row, held in matches.items() if scores[held] >= enough]
        for score, row in nlargest(8 * BEST, worth):
            if len(candidates) == BEST:
                break
            found, says = self._found(row)
            is_visible = any(found.span.first in part and found.span.end - 1 in part for part in seen)
            says_more = not known.issuperset(_words(says))  # than the question, which may have been asked before
            if says_more and not (is_visible and says.rstrip().endswith("?")):  # a question answers none
                rank = self._rank(score, found.span)
                candidates.append(Candidate(row, found, says, matches[row], rank, is_visible))
        return candidates

    def _matches(self, text: str) -> tuple[dict[int, int], dict[int, float], float]:
        """Each row's words of ``text``, a bit for each; what such sets of words weigh; and how much is enough.

        A rare word weighs more than a common one, and counts once in a span, however often it is there. Two rare words
        that stand side by side in ``text`` name one thing: a span with one of them alone is about another. Nor is one
        word enough where ``text`` has `MANY` rare ones.
        """
        # In quotes, and of letters and digits alone: nothing of a text is FTS5's syntax.
        query = "SELECT rowid FROM words WHERE words MATCH ? LIMIT ?"
        rows_of: dict[str, list[int]] = {}
        rare = 0  # words that are in few spans or in none
        words = [word for word in _words(text) if word not in FUNCTION_WORDS]
        for word in words[-MAX_WORDS:]:
            if word not in self._common:
                rows = [row for (row,) in self._database.execute(query, (f'"{word}"', COMMON))]
                rare += len(rows) < COMMON
                if len(rows) == COMMON:
                    self._common.add(word)
                elif rows:
                    rows_of[word] = rows
        matches: dict[int, int] = {}
        weights: dict[str, float] = {}
        left = MAX_MATCHES
        for word, rows in sorted(rows_of.items(), key=lambda item: len(item[1])):
            left -= len(rows)
            if left < 0:
                break
            for row in rows:
                matches[row] = matches.get(row, 0) | 1 << len(weights)
            weights[word] = math.log(1 + (self._rows - len(rows) + 0.5) / (len(rows) + 0.5))
        if rare >= MANY:
            matches = {row: held for row, held in matches.items() if held.bit_count() > 1}
        least = RARE * max(weights.values(), default=0.0)
        bits = {word: 1 << number for number, word in enumerate(weights)}
        partners = dict.fromkeys(weights, 0)
        for pair in NEIGHBOURS.findall(text.lower()):
            if all(word in weights and weights[word] >= least for word in pair):
                first, second = pair
                partners[first] |= bits[second]
                partners[second] |= bits[first]
        scores = {
            held: sum(
                weight
                for word, weight in weights.items()
                if held & bits[word] and (not partners[word] or held & partners[word])
            )
            for held in {*matches.values()}
        }
        return matches, scores, MIN_SHARE * sum(weights.values())

    def _rank(self, score: float, span: Span) -> float:
        """bm25 of a span whose words each count once."""
        length = len(span.ids) * self._rows / self._tokens  # 1 is the mean
        return score * (SATURATION + 1) / (1 + SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * length))

    def _found(self, row: int) -> tuple[Found, str]:
        query = "SELECT turn, first, ids, text FROM spans JOIN words ON words.rowid = row WHERE row = ?"
        turn, first, ids, text = self._database.execute(query, (row,)).fetchone()
        return Found(turn, Span(first, tuple(np.frombuffer(ids, TOKEN_TYPE).tolist()))), text


def _words(text: str) -> list[str]:
    """A text's different words, those that come last at the end."""
    return [*dict.fromkeys(reversed(WORD.findall(text.lower())))][::-1]


def _says_again(later: str, earlier: str) -> bool:
    """Whether ``later`` has all words of ``earlier``, or all except one: that one has changed."""
    return len({*_words(earlier)}.difference(_words(later))) <= 1


def _merged(found: Sequence[Found]) -> list[Found]:
    merged: list[Found] = []
    for part in found:
        last = merged[-1] if merged else None
        if last is not None and last.turn == part.turn and last.span.end == part.span.first:
            merged[-1] = Found(last.turn, Span(last.span.first, last.span.ids + part.span.ids))
        else:
            merged.append(part)
    return merged


class Recall:
    """An index for each conversation that asks for one. For any thread."""

    def __init__(self, log: TurnLog) -> None:
        self._log = log
        self._indexes: OrderedDict[Hashable, tuple[threading.Lock, SpanIndex]] = OrderedDict()
        self._lock = threading.Lock()  # guards the dictionary

    def find(self, key: Hashable, turn: TurnRecord, question: Question, vocabulary: Vocabulary) -> list[Found]:
        """`SpanIndex.search` in the conversation ``key``, up to ``turn``."""
        while True:
            lock, index = self._index(key, vocabulary)
            with lock:
                if index.is_closed:  # it was dropped before this thread had its lock
                    continue
                try:
                    index.follow(turn, self._log)
                    return index.search(question)
                except BaseException:  # it may have a part of a turn
                    with self._lock:
                        if self._indexes.get(key) == (lock, index):
                            del self._indexes[key]
                    index.close()
                    raise

    def _index(self, key: Hashable, vocabulary: Vocabulary) -> tuple[threading.Lock, SpanIndex]:
        with self._lock:
            if key not in self._indexes:
                self._indexes[key] = threading.Lock(), SpanIndex(vocabulary)
            self._indexes.move_to_end(key)
            found = self._indexes[key]
            excess = [*islice(self._indexes, max(len(self._indexes) - MAX_INDEXES, 0))]
        for oldest in excess:
            self.drop(oldest)
        return found

    def drop(self, key: Hashable) -> None:
        """Forget a conversation's index, if there is one."""
        with self._lock:
            lock, index = self._indexes.pop(key, (None, None))
        if lock is not None and index is not None:
            with lock:
                index.close()

    def sweep(self, existing: Callable[[Collection[bytes]], set[bytes]]) -> None:
        """Forget the indexes of conversations whose last turn is not ``existing`` any longer."""
        with self._lock:
            last = {key: index.turns[-1] for key, (_, index) in self._indexes.items() if index.turns}
        kept = existing({*last.values()})
        for key, turn in last.items():
            if turn not in kept:
                self.drop(key)
