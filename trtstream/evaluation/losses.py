"""A run's losses as they come: the curve, and the files that an interrupted run continues from."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtstream.errors import TrtstreamError
from trtstream.evaluation.curve import Curve
from trtstream.evaluation.scoring import SEGMENT, Run
from trtstream.evaluation.tokens import TokenFile
from trtstream.machine import resident_memory
from trtstream.runtime.session_state import SessionState

SAVE_SECONDS = 20.0
MEMORY_SAMPLES = 100


@dataclass(frozen=True)
class LossFiles:
    """A run's two files.

    * ``losses`` (NAME.f32): the losses, little-endian float32 in nats, nothing else; the i-th (from 0) is that of token
      ``(i + 1) * every`` of the text.
    * ``state`` (NAME.safetensors): the session and the run's progress at the last save.
    """

    losses: Path
    state: Path


class LossLog:
    """Losses of one run over ``tokens``. With a folder they are also in `LossFiles` there."""

    def __init__(self, run: Run, tokens: TokenFile, folder: Path | None, identity: dict[str, Any]) -> None:
        """``identity`` identifies the run (JSON values): a run resumes only where all of it is the same."""
        self.run = run
        self.curve = Curve()
        self.sampled = Curve()  # of the positions that are multiples of the run's ``sample``
        self.done = 0  # tokens of the text
        self.resident: list[dict[str, int]] = []
        self._tokens = tokens
        self._identity = identity
        self._hash = hashlib.sha256()
        self._seconds_before = 0.0
        self._started = self._saved = time.monotonic()
        self._stride = max(tokens.count // MEMORY_SAMPLES, SEGMENT)
        self._files = None
        if folder is not None:
            self._files = LossFiles(folder / f"{run.name}.f32", folder / f"{run.name}.safetensors")

    @property
    def seconds(self) -> float:
        """The time that the losses took, earlier parts of a resumed run included."""
        return self._seconds_before + time.monotonic() - self._started

    def save_due(self, end: int) -> bool:
        """Whether the segment up to ``end`` should be saved with its state."""
        return self._files is not None and end % SEGMENT == 0 and time.monotonic() - self._saved >= SAVE_SECONDS

    def append(self, end: int, losses: np.ndarray, state: SessionState | None, *, save: bool) -> None:
        """Take the losses of the segment [done, end), and if ``save`` keep all that a resumed run needs."""
        self._count(self.run.positions(self.done, end), losses)
        self._hash.update(self._tokens.read(self.done, end).tobytes())
        if self.done // self._stride != end // self._stride or not self.resident:
            self.resident.append({"position": end, "resident_bytes": resident_memory()})
        self.done = end
        if self._files is None:
            return
        with self._files.losses.open("ab") as file:
            file.write(losses.astype("<f4").tobytes())
            if save:  # the state must not reach the disk before the losses that it counts
                file.flush()
                os.fsync(file.fileno())
        if save:
            progress = {
                "done": self.done,
                "ids_sha256": self._hash.hexdigest(),
                "losses": self.curve.count,
                "seconds": self.seconds,
                "resident": self.resident,
            }
            (state or SessionState(0, 0, [])).save(self._files.state, self._identity, progress)
            self._saved = time.monotonic()

    def start(self) -> SessionState | None:
        """Begin with empty files, or at the last save where there is one: `done` says where.

        Raises TrtstreamError if that is another run's, or damaged.
        """
        if self._files is None:
            return None
        if not self._files.state.exists():
            self._files.losses.write_bytes(b"")
            return None
        state, progress = SessionState.load(self._files.state, self._identity)
        self._check(self._files.state, progress)
        self._read_losses(self._files, progress["losses"])
        self.done, self.resident = progress["done"], progress["resident"]
        self._seconds_before = progress["seconds"]
        return state if state.token_ids else None  # ``recompute`` has no session

    def _check(self, path: Path, progress: dict[str, Any]) -> None:
        done = progress["done"]
        if done > self._tokens.count:
            raise TrtstreamError(
                f"{path} holds a run that has come to token {done}, beyond the {self._tokens.count} asked for; "
                "ask for more --tokens, or choose another --keep folder"
            )
        for begin in range(0, done, SEGMENT):
            self._hash.update(self._tokens.read(begin, min(begin + SEGMENT, done)).tobytes())
        if self._hash.hexdigest() != progress["ids_sha256"]:
            raise TrtstreamError(
                f"{path} holds a run of another text: its first {done} token ids differ; choose another --keep folder"
            )

    def _read_losses(self, files: LossFiles, count: int) -> None:
        """Drop the losses after the last save, and add the others to the curve."""
        if not files.losses.exists() or files.losses.stat().st_size < 4 * count:
            raise TrtstreamError(f"{files.losses} lacks losses that {files.state} counts; remove both to start over")
        os.truncate(files.losses, 4 * count)
        every = self.run.every
        for begin in range(0, count, SEGMENT):
            end = min(begin + SEGMENT, count)
            losses = np.fromfile(files.losses, dtype="<f4", count=end - begin, offset=4 * begin)
            self._count(np.arange(begin + 1, end + 1) * every, losses)

    def _count(self, positions: np.ndarray, losses: np.ndarray) -> None:
        self.curve.add(positions, losses)
        sampled = positions % self.run.sample == 0
        self.sampled.add(positions[sampled], losses[sampled])
