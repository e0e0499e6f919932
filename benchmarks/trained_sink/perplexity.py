"""How well an engine of a checkpoint predicts a text that it was not trained on."""

from __future__ import annotations

import tempfile
from pathlib import Path

from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.cpu import build_cpu_engine
from trtstream.evaluation.engines import open_subject
from trtstream.evaluation.report import run_report
from trtstream.evaluation.runs import score_run
from trtstream.evaluation.scoring import Run
from trtstream.evaluation.tokens import TokenFile
from trtstream.progress import progress_bar
from trtstream.settings import BuildConfig


def perplexity(checkpoint: Path, text: Path, build: BuildConfig) -> float:
    """Of all of the text, whose ids are next to it in a file ``.ids``, by an engine of the cpu target."""
    sinks = build.sink_token_length
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "engine"
        with progress_bar("tensors") as progress:
            build_cpu_engine(open_checkpoint(checkpoint), build, engine, progress)
        run = Run(f"{checkpoint.name}, S = {sinks}", "streaming", sinks, build.max_attention_window)
        report = run_report(score_run(run, open_subject(engine, None), TokenFile(text.with_suffix(".ids")), None))
    found: float = report["perplexity"]
    return found
