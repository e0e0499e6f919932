"""The measurement: all contestants in turn (A B A B ...), one computing at a time, along one text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.compare.entries import STEPS, Entry
from benchmarks.compare.peer import Peer, Turn
from trtstream.errors import TrtstreamError
from trtstream.progress import progress_bar

FILL_PARTS = 8  # in which the window is filled: so many predictions below it


@dataclass(frozen=True)
class Plan:
    """How often contestants take turns, and how many tokens of the text a turn takes."""

    window: int
    rounds: int

    @property
    def long_rounds(self) -> int:
        """Those of evaluation and prefill, whose turns are long."""
        return max(self.rounds // 4, 1)

    @property
    def parts(self) -> dict[str, int]:
        """The parts of the measurement in their order, and the rounds of each."""
        return {
            "fill": 1,
            "warm up": 1,
            "decode": self.rounds,
            "evaluate": self.long_rounds,
            "prefill": self.long_rounds,
        }

    def tokens(self, part: str) -> int:
        """Tokens of a turn."""
        if part == "fill":
            return self.window - self.window % FILL_PARTS
        return {"evaluate": self.window // 2, "prefill": self.window}.get(part, STEPS)

    @property
    def all_tokens(self) -> int:
        """Of the text; the last is predicted only."""
        return sum(rounds * self.tokens(part) for part, rounds in self.parts.items()) + 1

    def request(self, part: str, entry: Entry) -> tuple[Any, ...] | None:
        """What a contestant is asked for in its turn: a method of its `Player` and arguments; None: it has no part."""
        tokens = self.tokens(part)
        if part == "evaluate":
            return ("evaluate", tokens) if entry.evaluates else None
        if part == "prefill":
            return ("prefill", tokens) if entry.prefills else None
        return "steps", tokens, tokens // FILL_PARTS if part == "fill" else entry.every


@dataclass
class Record:
    """What a contestant did: its turns of each part, and why it is out, if it is."""

    entry: Entry
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    failure: str | None = None

    @property
    def log_probs(self) -> dict[int, float]:
        """Of every token that was predicted, by its position."""
        turns = (turn for part in self.turns.values() for turn in part)
        return {position: value for turn in turns for position, value in turn.log_probs.items()}


def measure(entries: Sequence[Entry], needed: int, ids: Sequence[int], plan: Plan, threads: int) -> list[Record]:
    """Let all contestants run. One that fails is out; raises TrtstreamError if it is among the first ``needed``."""
    records = [Record(entry) for entry in entries]
    with ExitStack() as stack:
        running: list[tuple[Record, Peer]] = []
        with progress_bar("load") as progress:
            for done, record in enumerate(records, 1):
                entry = record.entry
                if entry.maker is not None:
                    peer = Peer(entry.maker, entry.settings, ids, threads)
                    stack.callback(peer.close)
                    peer.wait()
                    running.append((record, peer))
                progress(done, len(records))
        for part, rounds in plan.parts.items():
            with progress_bar(part) as progress:
                for done in range(1, rounds + 1):
                    for record, peer in running:
                        request = plan.request(part, record.entry)
                        turn = None if request is None else peer.ask(*request)
                        if turn is not None:
                            record.turns.setdefault(part, []).append(turn)
                        record.failure = peer.failure
                        if record in records[:needed] and peer.failure is not None:
                            raise TrtstreamError(f"{record.entry.name}: {peer.failure}")
                    progress(done, rounds)
    return records
