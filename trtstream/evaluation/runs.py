"""Which runs an evaluation makes, and one run from its first token to its last."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from trtstream.errors import TrtstreamError
from trtstream.evaluation.engines import Subject
from trtstream.evaluation.losses import LossLog
from trtstream.evaluation.options import Options
from trtstream.evaluation.scoring import SEGMENT, Run, Scorer
from trtstream.evaluation.tokens import TokenFile
from trtstream.progress import progress_bar
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.settings import BuildConfig, check_against_model, default_window

DEFAULTS = BuildConfig()


def sizes_of(options: Options, subject: Subject) -> tuple[int, int]:
    """S and W to evaluate with: those of the options, else the engine's own or the defaults."""
    sinks, window = options.sink_token_length, options.max_attention_window
    if subject.built is None:
        return (
            DEFAULTS.sink_token_length if sinks is None else sinks,
            default_window(subject.model) if window is None else window,
        )
    build = subject.built.build
    own_sinks, own_window = build.sink_token_length, build.sink_token_length + build.ring
    if sinks not in (None, own_sinks) or window not in (None, own_window):
        raise TrtstreamError(
            f"the engine sees {own_sinks} sink tokens in a window of {own_window}, and no other; give its checkpoint "
            "instead"
        )
    return own_sinks, own_window


def plan_runs(options: Options, subject: Subject, predictions: int) -> list[Run]:
    """One run for each method, or for each combination of a sweep.

    ``predictions`` tokens are predicted. Raises TrtstreamError for a run that the subject cannot make.
    """
    sinks, window = sizes_of(options, subject)
    if options.sweeping:
        if subject.built is not None:
            raise TrtstreamError("an engine has its own window and cannot sweep others; give its checkpoint")
        runs = [
            Run(f"streaming-s{s}-w{w}", "streaming", s, w)
            for w in options.sweep_window or [window]
            for s in options.sweep_sinks or [sinks]
        ]
    else:
        return method_runs(options, subject, predictions)
    for run in runs:
        check_run(run, subject, options.force)
    return runs


def method_runs(options: Options, subject: Subject, predictions: int) -> list[Run]:
    """One run for each method, as `plan_runs` makes them."""
    sinks, window = sizes_of(options, subject)
    methods, every = options.methods, options.every
    if subject.built is not None and methods != ["streaming"]:
        raise TrtstreamError("an engine evaluates as streaming only; give its checkpoint for the other methods")
    if every > predictions:
        raise TrtstreamError(f"--every {every} leaves none of {predictions} tokens to predict; use a smaller one")
    sizes = {
        "streaming": (sinks, window),
        "window": (0, window),
        "dense": (0, predictions),
        "recompute": (0, window),
        "lru": (0, window),
    }
    sample = every if len(methods) > 1 else 1
    runs = [Run(method, method, *sizes[method], every if method == "recompute" else 1, sample) for method in methods]
    for run in runs:
        check_run(run, subject, options.force)
    return runs


def open_engine(run: Run, subject: Subject) -> StreamingEngine:
    """The engine that computes a run."""
    return subject.engine(run.sink_token_length, run.max_attention_window, lru=run.method == "lru")


def refuse_existing(runs: Iterable[Run], folder: Path, suffix: str) -> None:
    """Raise TrtstreamError if ``folder`` holds what one of the runs keeps in a file NAME + ``suffix``."""
    existing = next((run.name for run in runs if (folder / f"{run.name}{suffix}").exists()), None)
    if existing is not None:
        raise TrtstreamError(
            f"{folder} holds a run of {existing} already; continue with --resume, or choose another --keep folder"
        )


def run_identity(run: Run, subject: Subject) -> dict[str, int | str]:
    """What a run that continues another one must have in common with it."""
    return {
        "weights": subject.identity,
        "target": subject.target,
        "dtype": subject.dtype,
        "method": run.method,
        "sink_token_length": run.sink_token_length,
        "max_attention_window": run.max_attention_window,
    }


def check_run(run: Run, subject: Subject, force: bool) -> None:
    """Raise TrtstreamError where a run's window does not suit the model."""
    window, context = run.max_attention_window, subject.model.max_position_embeddings
    if run.method == "dense" and window > context and not force:
        raise TrtstreamError(
            f"dense attention over {window} tokens is beyond the checkpoint's trained context of {context}; use "
            f"--tokens {context} or less, or --force to see it fail"
        )
    build = BuildConfig(
        max_attention_window=window,
        sink_token_length=run.sink_token_length,
        max_sink_token_length=run.sink_token_length,
        dtype=subject.dtype,
    )
    build.validate(subject.target)
    if subject.built is None:
        check_against_model(build, subject.model, force)


def score_run(run: Run, subject: Subject, tokens: TokenFile, folder: Path | None) -> LossLog:
    """Compute a run's losses, or those that ``folder`` lacks."""
    log = LossLog(run, tokens, folder, {**run_identity(run, subject), "every": run.every})
    state = log.start()
    if log.done:
        print(f"{run.name}: continuing after {log.done} tokens", file=sys.stderr)
    scorer = Scorer(run, open_engine(run, subject), tokens)
    scorer.resume(log.done, state)
    with progress_bar(f"{run.name}, tokens") as progress:
        progress(log.done, tokens.count)
        step = SEGMENT // 32 if run.method in ("recompute", "lru") else SEGMENT  # a slow run reports more often
        for begin in range(log.done, tokens.count, step):
            end = min(begin + step, tokens.count)
            save = log.save_due(end) and run.method != "lru"  # whose session cannot be exported
            losses, state = scorer.segment(begin, end, keep=save)
            log.append(end, losses, state, save=save)
            progress(end, tokens.count)
    return log
