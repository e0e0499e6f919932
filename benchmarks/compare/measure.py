"""The measurement: all contestants in turn (A B A B ...), one computing at a time, along one text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.compare.entries import STEPS, Entry
from benchmarks.compare.peer import Peer, Turn
from trtstream.errors import TrtstreamError
from trtstream.progress import progress_bar

FILL_CALLS = 8  # in which the window is filled, with a prediction after each


@dataclass(frozen=True)
class Part:
    """A part of the measurement: in each round a contestant is given ``tokens`` tokens of the text.

    ``every`` of them go into a call of ``method`` (see `Contestant`); 0: as many as the contestant's entry says.
    """

    name: str
    method: str
    rounds: int
    tokens: int
    every: int = 0


def plan(window: int, rounds: int) -> list[Part]:
    """The parts in their order. Those of evaluation and prefill have fewer rounds, as their turns are long."""
    long_rounds, filled = max(rounds // 4, 1), window - window % FILL_CALLS
    return [
        Part("fill", "feed", 1, filled, filled // FILL_CALLS),
        Part("warm up", "feed", 1, STEPS),
        Part("decode", "feed", rounds, STEPS),
        Part("evaluate", "evaluate", long_rounds, window // 2, window // 2),
        Part("prefill", "prefill", long_rounds, window, window),
    ]


@dataclass
class Record:
    """A contestant's turns in each part. ``failure`` says why it is out, if it is."""

    entry: Entry
    note: str = ""
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    failure: str | None = None

    @property
    def log_probs(self) -> dict[int, float]:
        """Of every token that was predicted, by its position."""
        turns = (turn for part in self.turns.values() for turn in part)
        return {position: value for turn in turns for position, value in turn.log_probs.items()}


def measure(
    entries: Sequence[Entry], needed: int, ids: Sequence[int], parts: Sequence[Part], threads: int
) -> list[Record]:
    """Run all contestants. One that fails is out; raises TrtstreamError if it is among the first ``needed``."""
    records = [Record(entry, failure=entry.why_not) for entry in entries]
    with ExitStack() as stack:
        running: list[tuple[Record, Peer]] = []
        with progress_bar("load") as progress:
            for done, record in enumerate(records, 1):
                if record.failure is None:
                    peer = Peer(record.entry.maker, record.entry.settings, ids, threads)
                    stack.callback(peer.close)
                    record.note = peer.wait()
                    running.append((record, peer))
                progress(done, len(records))
        for part in parts:
            with progress_bar(part.name) as progress:
                for done in range(1, part.rounds + 1):
                    for record, peer in running:
                        if record.entry.sessions > 1 and part.method != "feed":
                            continue  # prompts are one session's, and so is evaluation
                        turn = peer.ask(part.method, part.tokens, part.every or record.entry.every)
                        if turn is not None:
                            record.turns.setdefault(part.name, []).append(turn)
                        record.failure = peer.failure
                        if record in records[:needed] and peer.failure is not None:
                            raise TrtstreamError(f"{record.entry.name}: {peer.failure}")
                    progress(done, part.rounds)
    return records
