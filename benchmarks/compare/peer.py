"""A contestant in a process of its own: it lives as long as the comparison, computes when asked, and else waits.

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
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from trtstream.errors import TrtstreamError

QUIET = 0.02  # seconds without work after which a process's threads count as asleep


class Contestant(Protocol):
    """What is measured. Fed the tokens of one text, in order; ``step_bytes`` is what the last call had to read."""

    step_bytes: int

    def feed(self, tokens: Sequence[int]) -> np.ndarray | None:
        """Feed tokens; logits [vocab] (float32) after the last, or None of what predicts nothing."""

    def evaluate(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed tokens; log-probability [T] (float32) of each given those before it."""

    def prefill(self, tokens: Sequence[int]) -> None:
        """Take in a prompt, the fastest way there is."""


@dataclass
class Turn:
    """What a contestant did in a turn. Log-probabilities are by the position of the token that was predicted."""

    milliseconds: list[float] = field(default_factory=list)  # of each call
    bytes_read: list[int] = field(default_factory=list)  # the least that each call had to read
    log_probs: dict[int, float] = field(default_factory=dict)
    logits_std: float | None = None


@dataclass
class Failure:
    reason: str


class Player:
    """Feeds a text to a contestant, and times it."""

    def __init__(self, contestant: Contestant, text: Sequence[int]) -> None:
        self._contestant, self._text, self._position = contestant, text, 0

    def steps(self, count: int, every: int) -> Turn:
        """Feed ``count`` tokens, ``every`` of them at once; each call is timed until the logits are there."""
        turn = Turn()
        for _ in range(count // every):
            tokens = self._next(every)
            started = time.perf_counter()
            logits = self._contestant.feed(tokens)
            turn.milliseconds.append((time.perf_counter() - started) * 1e3)
            turn.bytes_read.append(self._contestant.step_bytes)
            if logits is not None:
                turn.log_probs[self._position] = _log_prob(logits, self._text[self._position])
                turn.logits_std = float(logits.std())
        return turn

    def evaluate(self, count: int) -> Turn:
        """Feed ``count`` tokens in one timed call that predicts each."""
        first, tokens = self._position, self._next(count)
        started = time.perf_counter()
        log_probs = self._contestant.evaluate(tokens)
        milliseconds = (time.perf_counter() - started) * 1e3
        return Turn([milliseconds], log_probs=dict(enumerate(log_probs.tolist(), first)))

    def prefill(self, count: int) -> Turn:
        """Feed ``count`` tokens as a prompt, in one timed call."""
        tokens = self._next(count)
        started = time.perf_counter()
        self._contestant.prefill(tokens)
        return Turn([(time.perf_counter() - started) * 1e3])

    def _next(self, count: int) -> Sequence[int]:
        self._position += count
        return self._text[self._position - count : self._position]


def _log_prob(logits: np.ndarray, token: int) -> float:
    """Not by torch, whose threads would go on spinning while another library computes."""
    shifted = logits.astype(np.float64) - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum()))


class Peer:
    """The comparison's end of a contestant. ``failure`` says in one line why it is out, if it is."""

    def __init__(self, maker: str, settings: dict[str, Any], text: Sequence[int], threads: int) -> None:
        """Start the process. ``maker`` ("module:function") makes the contestant there, of ``settings``."""
        self.failure: str | None = None
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, maker, settings, text, threads), daemon=True)
        self._process.start()
        theirs.close()

    def wait(self) -> Any:
        """The answer to what was asked, first to being started; None from one that is out."""
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

    def ask(self, method: str, *arguments: int) -> Turn | None:
        """Call a method of the contestant's `Player`, and wait until it is done and its threads sleep."""
        if self.failure is None:
            with suppress(ConnectionError):  # why it ended is for `wait` to say
                self._connection.send((method, arguments))
        return self.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _how_it_ended(status: int) -> str:
    if status == -signal.SIGILL:
        return "its process met an instruction that it may not use; docs/results.md has CMAKE_ARGS without such"
    return f"its process ended with status {status}"


def _serve(connection: Connection, maker: str, settings: dict[str, Any], text: Sequence[int], threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the comparison, which then ends this process
    module, _, function = maker.partition(":")
    try:
        player = Player(getattr(importlib.import_module(module), function)(threads=threads, **settings), text)
        connection.send(True)
        while True:
            method, arguments = connection.recv()
            turn = getattr(player, method)(*arguments)
            _sleep_until_quiet()
            connection.send(turn)
    except (EOFError, ConnectionError):  # the comparison has ended
        return
    except Exception as error:
        if not isinstance(error, TrtstreamError):
            traceback.print_exc()
        connection.send(Failure((str(error) or type(error).__name__).splitlines()[0]))


def _sleep_until_quiet() -> None:
    """Return when this process's threads have stopped spinning for work: the next contestant has the cores alone."""
    used = QUIET
    while used > QUIET / 10:
        before = time.process_time()
        time.sleep(QUIET)
        used = time.process_time() - before
