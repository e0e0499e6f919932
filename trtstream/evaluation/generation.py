"""``trtstream eval --generate``: what each method writes by itself, far past its window."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trtstream.errors import TrtstreamError
from trtstream.evaluation.engines import Subject
from trtstream.evaluation.generated import Generated, Identity, load_generated
from trtstream.evaluation.options import Options
from trtstream.evaluation.plot import plot_generation
from trtstream.evaluation.repetition import distinct, longest_loop
from trtstream.evaluation.report import heading, print_generation
from trtstream.evaluation.runs import method_runs, open_engine, refuse_existing, run_identity, sizes_of
from trtstream.evaluation.scoring import Run
from trtstream.evaluation.tokens import temporary_tokens
from trtstream.progress import progress_bar
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.settings import default_window

SEED = 0
POINTS = 20  # of a curve
NGRAMS = (1, 2, 4)


def evaluate_generation(options: Options, subject: Subject) -> dict[str, Any]:
    """Have each method continue the text's beginning, print and draw what came of it; returns the report.

    The prompt is the text's first tokens, half a window of them. Tokens are sampled at temperature 1, with the same
    seed for every method. Raises TrtstreamError for what cannot be done.
    """
    assert options.generate is not None, "the command evaluates something else without it"
    if subject.built is not None:
        raise TrtstreamError("what was generated is judged by dense attention; give the engine's checkpoint")
    length = max(sizes_of(options, subject)[1] // 2, 2)
    with temporary_tokens(options.text, subject.tokenizer, subject.model.vocab_size, length) as tokens:
        prompt = tokens.read(0, tokens.count).tolist()
    runs = method_runs(options, subject, len(prompt) + options.generate)
    if options.keep is not None and not options.resume:
        refuse_existing(runs, options.keep, ".json")
    judge = subject.engine(0, default_window(subject.model))
    reports = {}
    for run in runs:
        generated = _generated(run, subject, prompt, options.generate, options.keep)
        reports[run.name] = _findings(run, generated, judge, options.generate)
    print_generation(list(reports.values()))
    if options.plot_file is not None:
        plot_generation(options.plot_file, options.title, reports)
    return {
        **heading(options, subject, options.generate),
        "prompt_tokens": len(prompt),
        "judged_tokens": judge.build.ring,
        "methods": reports,
    }


def _generated(run: Run, subject: Subject, prompt: list[int], count: int, folder: Path | None) -> Generated:
    """What a method writes, or what it wrote to ``folder`` before."""
    identity: Identity = {
        **run_identity(run, subject),
        "prompt_sha256": hashlib.sha256(np.array(prompt, dtype="<i4").tobytes()).hexdigest(),
        "tokens": count,
        "seed": SEED,
    }
    path = None if folder is None else folder / f"{run.name}.json"
    kept = None if path is None else load_generated(path, identity)
    if kept is not None:
        return kept
    started = time.monotonic()
    ids = sample(run, open_engine(run, subject), prompt, count)
    generated = Generated(identity, ids, time.monotonic() - started)
    if path is not None:
        generated.save(path, subject.tokenizer.decode(ids))
    return generated


def _findings(run: Run, generated: Generated, judge: StreamingEngine, count: int) -> dict[str, Any]:
    """One method's findings. Losses are in nats per token."""
    ids, prompt_tokens = generated.ids, len(generated.ids) - count
    own = np.array(ids[prompt_tokens:])
    ends = sorted({max(count * point // POINTS, 1) for point in range(1, POINTS + 1)})
    return {
        "method": run.method,
        "sink_token_length": run.sink_token_length,
        "max_attention_window": run.max_attention_window,
        "tokens": count,
        "seconds": generated.seconds,
        "distinct": _distinct(own),
        "longest_loop": longest_loop(own)._asdict(),
        "curve": [
            {
                "first": begin,
                "last": end - 1,
                "loss": judged_loss(judge, ids[: prompt_tokens + end], end),
                "distinct": _distinct(own[begin:end]),
            }
            for begin, end in zip([0, *ends], ends, strict=False)
        ],
    }


def sample(run: Run, engine: StreamingEngine, prompt: list[int], count: int) -> list[int]:
    """The prompt and the tokens that the engine continues it with."""
    generator, ids = torch.Generator().manual_seed(SEED), list(prompt)
    engine.reset(0)
    logits = engine.prefill(0, ids)
    with progress_bar(f"{run.name}, tokens") as progress:
        for done in range(count):
            ids.append(int(torch.multinomial(logits.cpu().softmax(dim=-1), 1, generator=generator)))
            if run.method == "recompute":
                engine.reset(0)
                logits = engine.prefill(0, ids[-run.max_attention_window :])
            else:
                logits = engine.decode([0], ids[-1:])[0]
            progress(done + 1, count)
    return ids


def judged_loss(judge: StreamingEngine, ids: list[int], generated: int) -> float:
    """The mean loss of the last tokens under dense attention.

    A dense session reads as many as the judge's window holds. The later half is judged, as far as it was generated.
    """
    last = ids[-judge.build.ring :]
    judge.reset(0)
    return float(-judge.score(0, last)[-min(len(last) // 2, generated) :].mean())


def _distinct(ids: np.ndarray) -> dict[str, float]:
    return {str(n): distinct(ids, n) for n in NGRAMS}
