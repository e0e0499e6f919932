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

import numpy as np

from trtstream.sessions.records import Recalled, TurnRecord
from trtstream.sessions.spans import Cutter, Span
from trtstream.sessions.turn_log import ID_TYPE, TurnLog

MAX_INDEXES = 64  # the least recently used leave
BATCH = 256  # turns that are read and added at once
MAX_WORDS = 32  # of a text that are searched: its last ones, as questions end texts
COMMON = 1024  # a word in so many spans says little, and takes long
MAX_MATCHES = 4096  # of all words, the rarest first
MIN_SHARE = 0.35  # of the weight of the question's words that are here, for a span to be worth its tokens
NEARLY_BEST = 0.95
BEST = 32  # spans whose lengths are looked at
SATURATION, LENGTH_WEIGHT = 1.2, 0.5  # bm25's k1 and b
WORD = re.compile(r"\w+")
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

    The session has been fed ``position`` tokens, of which it sees the first ``sink_token_length`` and the last ``ring``
    - 1. Each span beyond the first takes ``gap`` tokens more.
    """

    text: str
    position: int
    sink_token_length: int
    ring: int
    max_tokens: int
    gap: int = 0


class SpanIndex:
    """The spans of one conversation in their order. Used by one thread at a time, which may be any."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.turns: list[bytes] = []
        self._vocabulary = vocabulary
        self._rows = self._tokens = 0
        self._ends: list[tuple[int, int]] = []  # rows and tokens after each turn
        self._recalled: list[Recalled | None] = []  # in each turn
        # Private, on the disk where it grows beyond SQLite's cache, and gone once it is closed.
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.execute("CREATE VIRTUAL TABLE words USING fts5(text, tokenize='porter unicode61')")
        self._database.execute("CREATE TABLE spans (row INTEGER PRIMARY KEY, turn INTEGER, first INTEGER, ids BLOB)")

    def close(self) -> None:
        self._database.close()

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
            ids = np.asarray(span.ids, ID_TYPE).tobytes()
            self._database.execute("INSERT INTO spans VALUES (?, ?, ?, ?)", (self._rows, number, span.first, ids))
            self._database.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (self._rows, text))

    def _cut_back(self, count: int) -> None:
        """Forget all turns but the first ``count``."""
        del self.turns[count:], self._ends[count:], self._recalled[count:]
        self._rows, self._tokens = self._ends[-1] if self._ends else (0, 0)
        self._database.execute("DELETE FROM spans WHERE row > ?", (self._rows,))
        self._database.execute("DELETE FROM words WHERE rowid > ?", (self._rows,))

    def search(self, question: Question) -> list[Found]:
        """The spans that are worth reading again, in their old order; neighbours are one.

        Nothing that the session still sees is among them, be it the span itself or a copy that an earlier turn was fed.
        """
        words = _words(question.text)
        scores, enough = self._scores(words[-MAX_WORDS:])
        visible = question.position - question.ring + 1
        seen = [range(question.sink_token_length), range(visible, question.position + 1)]
        for recalled in reversed(self._recalled):
            if recalled is not None and recalled.first >= visible:
                seen += [range(first, end) for _, first, end in recalled.spans]
        known = ROLES.union(words)
        candidates: dict[int, tuple[float, Found]] = {}
        for row in nlargest(8 * BEST, scores, key=lambda row: (scores[row], row)):
            if len(candidates) == BEST or scores[row] < enough:
                break
            found, text = self._found(row)
            says_more = not known.issuperset(_words(text))  # than the question, which may have been asked before
            if says_more and not any(found.span.first in part and found.span.end - 1 in part for part in seen):
                candidates[row] = (self._rank(scores[row], found.span), found)
        best = max((rank for rank, _ in candidates.values()), default=0.0)
        chosen: dict[int, Found] = {}
        left = question.max_tokens
        for row, (rank, found) in sorted(candidates.items(), key=lambda item: (item[1][0], item[0]), reverse=True):
            if rank >= NEARLY_BEST * best and len(found.span.ids) <= left:
                chosen[row] = found
                left -= len(found.span.ids) + question.gap
        return _merged([chosen[row] for row in sorted(chosen)])

    def _scores(self, words: Sequence[str]) -> tuple[dict[int, float], float]:
        """Each row's sum of the weights of those words that it has, and how much is enough to be chosen.

        A rare word weighs more than a common one, and counts once in a span, however often it is there.
        """
        # In quotes, and of letters and digits alone: nothing of a text is FTS5's syntax.
        query = "SELECT rowid FROM words WHERE words MATCH ? LIMIT ?"
        matches = [[row for (row,) in self._database.execute(query, (f'"{word}"', COMMON))] for word in words]
        scores: dict[int, float] = {}
        total, left = 0.0, MAX_MATCHES
        for rows in sorted(matches, key=len):
            left -= len(rows)
            if len(rows) == COMMON or left < 0:
                break
            weight = math.log(1 + (self._rows - len(rows) + 0.5) / (len(rows) + 0.5))
            total += weight if rows else 0.0
            for row in rows:
                scores[row] = scores.get(row, 0.0) + weight
        return scores, MIN_SHARE * total

    def _rank(self, score: float, span: Span) -> float:
        """bm25 of a span whose words each count once."""
        length = len(span.ids) * self._rows / self._tokens  # 1 is the mean
        return score * (SATURATION + 1) / (1 + SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * length))

    def _found(self, row: int) -> tuple[Found, str]:
        query = "SELECT turn, first, ids, text FROM spans JOIN words ON words.rowid = row WHERE row = ?"
        turn, first, ids, text = self._database.execute(query, (row,)).fetchone()
        return Found(turn, Span(first, tuple(np.frombuffer(ids, ID_TYPE).tolist()))), text


def _words(text: str) -> list[str]:
    """A text's different words, those that come last at the end."""
    return [*dict.fromkeys(reversed(WORD.findall(text.lower())))][::-1]


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
        with self._lock:
            if key not in self._indexes:
                self._indexes[key] = threading.Lock(), SpanIndex(vocabulary)
            self._indexes.move_to_end(key)
            lock, index = self._indexes[key]
            excess = [*islice(self._indexes, max(len(self._indexes) - MAX_INDEXES, 0))]
        for oldest in excess:
            self.drop(oldest)
        with lock:
            try:
                index.follow(turn, self._log)
                return index.search(question)
            except BaseException:  # it may have a part of a turn
                with self._lock:
                    self._indexes.pop(key, None)
                index.close()
                raise

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
