"""An interrupted run, continued, has exactly the numbers of an uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trtstream.errors import TrtstreamError
from trtstream.evaluation import losses as losses_module
from trtstream.evaluation.engines import Subject, open_subject
from trtstream.evaluation.losses import LossLog
from trtstream.evaluation.runs import refuse_existing, score_run
from trtstream.evaluation.scoring import Run, Scorer
from trtstream.evaluation.tokens import TokenFile, tokenize

RUNS = [
    Run("streaming", "streaming", 4, 24, sample=70),
    Run("window", "window", 0, 24),
    Run("dense", "dense", 0, 4500),
    Run("recompute", "recompute", 0, 24, every=100),
]


@pytest.fixture(scope="module")
def subject(checkpoint: Path) -> Subject:
    return open_subject(checkpoint, None)


def ids(subject: Subject, text: Path, folder: Path, tokens: int = 4500) -> TokenFile:
    return tokenize(text, subject.tokenizer, subject.model.vocab_size, folder / "ids", tokens + 1)


def read(folder: Path, run: Run) -> np.ndarray:
    return np.fromfile(folder / f"{run.name}.f32", dtype="<f4")


class Killed(Exception):
    pass


def interrupt(
    run: Run, subject: Subject, tokens: TokenFile, folder: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run into ``folder``, and stop in the segment after token ``after``, as a power cut would."""
    segment = Scorer.segment

    def killed_later(self: Scorer, begin: int, end: int, *, keep: bool) -> object:
        if begin >= after:
            raise Killed
        return segment(self, begin, end, keep=keep)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "segment", killed_later)
        with pytest.raises(Killed):
            score_run(run, subject, tokens, folder)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_resumed_is_uninterrupted(
    run: Run, subject: Subject, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses_module, "SAVE_SECONDS", 0.0)
    tokens = ids(subject, text, tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = score_run(run, subject, tokens, whole)
    interrupt(run, subject, tokens, parts, 2048, monkeypatch)
    assert len(read(parts, run)) == 2047 // run.every
    with (parts / f"{run.name}.f32").open("ab") as file:
        file.write(b"losses after the last save, and torn")
    interrupt(run, subject, tokens, parts, 4096, monkeypatch)
    log = score_run(run, subject, tokens, parts)
    assert np.array_equal(read(parts, run), read(whole, run))
    assert len(read(whole, run)) == 4500 // run.every
    assert log.curve.count == expected.curve.count
    assert [p["tokens"] for p in log.curve.points()] == [p["tokens"] for p in expected.curve.points()]
    assert log.curve.mean == pytest.approx(expected.curve.mean, rel=1e-12)
    assert log.sampled.count == expected.sampled.count
    assert log.sampled.mean == pytest.approx(expected.sampled.mean, rel=1e-12)


def test_more_tokens_may_follow(subject: Subject, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses_module, "SAVE_SECONDS", 0.0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    score_run(RUNS[0], subject, ids(subject, text, tmp_path, 3000), parts)
    more = ids(subject, text, tmp_path, 4500)
    score_run(RUNS[0], subject, more, parts)
    score_run(RUNS[0], subject, more, whole)
    assert np.array_equal(read(parts, RUNS[0]), read(whole, RUNS[0]))


def test_another_run_is_refused(subject: Subject, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses_module, "SAVE_SECONDS", 0.0)
    run, tokens = RUNS[0], ids(subject, text, tmp_path)
    score_run(run, subject, tokens, tmp_path)
    with pytest.raises(TrtstreamError, match="holds a run of streaming already; continue with --resume, or choose"):
        refuse_existing([RUNS[1], run], tmp_path, ".f32")
    with pytest.raises(TrtstreamError, match="max_attention_window 24, and this one has 32"):
        score_run(Run("streaming", "streaming", 4, 32), subject, tokens, tmp_path)
    with pytest.raises(TrtstreamError, match="come to token 4096, beyond the 1001 asked for"):
        score_run(run, subject, ids(subject, text, tmp_path, 1000), tmp_path)
    other = tmp_path / "other.txt"
    other.write_text("X" + text.read_text()[1:])
    with pytest.raises(TrtstreamError, match="another text: its first 4096 token ids differ"):
        score_run(run, subject, ids(subject, other, tmp_path), tmp_path)
    (tmp_path / "streaming.safetensors").write_bytes(b"torn")
    with pytest.raises(TrtstreamError, match=r"streaming\.safetensors cannot be read .*; remove it to start over"):
        LossLog(run, tokens, tmp_path, {}).start()
