"""A contestant in a process of its own: it lives as long as the comparison, computes when asked, and otherwise waits.

Imports nothing heavy: a process sets its number of threads before torch is loaded there.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trtstream.errors import TrtstreamError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

QUIET = 0.02  # seconds without work after which a process's threads count as asleep


class Contestant(Protocol):
    """A way to decode, which is fed the tokens of one text in order.

    ``step_bytes`` is the least that the last call had to read. ``note`` goes into the last column of the table. Some
    also have ``evaluate(tokens)``, which feeds tokens and returns the log-probability [T] (float32) of each given those
    before it, and ``prefill(tokens)``, which feeds a prompt in the fastest way.
    """

    step_bytes: int
    note: str

    def feed(self, tokens: Sequence[int]) -> np.ndarray | None:
        """Feed tokens; logits [vocab] (float32) after the last, or None if it predicts nothing."""


@dataclass
class Turn:
    """A contestant's turn. Log-probabilities are by the position of the token that was predicted."""

    tokens: int
    milliseconds: list[float] = field(default_factory=list)  # of each call
    bytes_read: list[int] = field(default_factory=list)  # the least that each call had to read
    log_probs: dict[int, float] = field(default_factory=dict)
    logits_std: float = 0.0


@dataclass
class Failure:
    reason: str


class Player:
    """Feeds a text to a contestant and times it."""

    def __init__(self, contestant: Contestant, text: Sequence[int]) -> None:
        self._contestant, self._text, self._position = contestant, text, 0

    def play(self, method: str, count: int, every: int) -> Turn | None:
        """Feed the next ``count`` tokens, ``every`` of them in each timed call of ``method``: a method of `Contestant`.

        None from a contestant without it.
        """
        call = getattr(self._contestant, method, None)
        if call is None:
            return None
        turn = Turn(count)
        for _ in range(count // every):
            first, self._position = self._position, self._position + every
            tokens = self._text[first : self._position]
            started = time.perf_counter()
            found = call(tokens)
            turn.milliseconds.append((time.perf_counter() - started) * 1e3)
            turn.bytes_read.append(self._contestant.step_bytes)
            if method == "evaluate":
                turn.log_probs |= enumerate(found.tolist(), first)
            elif method == "feed" and found is not None:
                turn.log_probs[self._position] = _log_prob(found, self._text[self._position])
                turn.logits_std = float(found.std())
        return turn


def _log_prob(logits: np.ndarray, token: int) -> float:
    """In numpy, since torch's threads would keep spinning while another library computes."""
    shifted = logits.astype(np.float64) - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum()))


class Peer:
    """The comparison's end of a contestant. ``failure`` says in one line why it is out, if it is."""

    def __init__(self, maker: str, settings: dict[str, Any], text: Sequence[int], threads: int) -> None:
        """Start the process, where ``maker`` ("module:function") makes the contestant from ``settings``."""
        self.failure: str | None = None
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, maker, settings, text, threads), daemon=True)
        self._process.start()
        theirs.close()

    def wait(self) -> Any:
        """The next answer: first the contestant's note, then a `Turn` for each `ask`. None from one that is out."""
        if self.failure is not None:
            return None
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            answer = Failure(_how_it_ended(self._process.exitcode))
        if isinstance(answer, Failure):
            self.failure = answer.reason
            return None
        return answer

    def ask(self, method: str, count: int, every: int) -> Turn | None:
        """Let the contestant's `Player` play, and wait until it is done and its threads sleep."""
        if self.failure is None:
            with suppress(ConnectionError):  # `wait` says why it ended
                self._connection.send((method, count, every))
        return self.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _how_it_ended(status: int | None) -> str:
    if status == -signal.SIGILL:
        return "its process met an instruction that it may not use; docs/results.md has CMAKE_ARGS without such"
    return f"its process ended with status {status}"


def _serve(connection: Connection, maker: str, settings: dict[str, Any], text: Sequence[int], threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the comparison, which then ends this process
    module, _, function = maker.partition(":")
    try:
        contestant = getattr(importlib.import_module(module), function)(threads=threads, **settings)
        player = Player(contestant, text)
        connection.send(contestant.note)
        while True:
            turn = player.play(*connection.recv())
            _sleep_until_quiet()
            connection.send(turn)
    except (EOFError, ConnectionError):  # the comparison has ended
        return
    except Exception as error:
        if not isinstance(error, TrtstreamError):
            traceback.print_exc()
        connection.send(Failure((str(error) or type(error).__name__).splitlines()[0]))


def _sleep_until_quiet() -> None:
    """Return when this process's threads have stopped spinning for work, so that the next contestant has all cores."""
    used = QUIET
    while used > QUIET / 10:
        before = time.process_time()
        time.sleep(QUIET)
        used = time.process_time() - before
