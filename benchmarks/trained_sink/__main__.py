"""Does a sink token that a model was trained with do the work of several? The paper's section 4.3, at a small size.

Trains pairs of small Llamas on one text: as usual, and with a learned sink token in front of every sample. Then their
engines, built with ``--sink-token``, predict a part of the text that none was trained on, with 0, 1, 2 and 4 sink
tokens in a window of half the trained context:

    python -m benchmarks.trained_sink --work FOLDER --json benchmarks/results/trained_sink.json

``--work`` keeps the checkpoints and the state of a training: the same command continues after an interruption.
``--size 160m`` is for a GPU and a long ``--text``.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks import write_json
from benchmarks.markdown import table
from benchmarks.trained_sink.training import SINK, SIZES, Size, split, token_ids, train_tokenizer, trained
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.cpu import build_cpu_engine
from trtstream.evaluation.engines import open_subject
from trtstream.evaluation.plot import picture
from trtstream.evaluation.report import run_report
from trtstream.evaluation.runs import score_run
from trtstream.evaluation.scoring import Run
from trtstream.evaluation.tokens import TokenFile
from trtstream.machine import machine
from trtstream.progress import progress_bar
from trtstream.samples.king_james import fetch_king_james
from trtstream.settings import BuildConfig

SINKS = (0, 1, 2, 4)
SAMPLES = 32  # whose attention is looked at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--size", choices=SIZES, default="4m")
    parser.add_argument("--text", type=Path, help="UTF-8; default: the King James Bible")
    parser.add_argument("--seeds", type=int, default=3, help="pairs to train")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()

    size, work = SIZES[arguments.size], arguments.work
    work.mkdir(parents=True, exist_ok=True)
    train, held_out = split(arguments.text or fetch_king_james(), work)
    tokenizer = train_tokenizer(train, size.vocabulary, work / "tokenizer")
    ids = token_ids(train, work / "tokenizer", size)
    unseen = token_ids(held_out, work / "tokenizer", size)
    models = []
    for seed in range(arguments.seeds):
        for has_sink in (False, True):
            name = f"{arguments.size}-{'sink' if has_sink else 'usual'}-{seed}"
            folder = trained(size, ids, has_sink=has_sink, seed=seed, tokenizer=tokenizer, folder=work / name)
            models.append(
                {
                    "has_sink": has_sink,
                    "seed": seed,
                    "perplexity": {sinks: perplexity(folder, held_out, size, sinks, has_sink) for sinks in SINKS},
                    "attention_to_first": attention_to_first(folder, unseen, size, has_sink),
                }
            )
    print(table(rows(models)))
    if arguments.plot is not None:
        draw(arguments.plot, models)
    write_json(
        arguments.json,
        {
            "checkpoint": f"{len(models)} models that it trained",
            "machine": machine(),
            "size": asdict(size),
            "tokens_of_text": len(ids),
            "tokens_held_out": len(unseen),
            "max_attention_window": size.context // 2,
            "models": models,
        },
    )


def perplexity(checkpoint: Path, text: Path, size: Size, sinks: int, has_sink: bool) -> float:
    """Of the held-out text, whose ids are next to it, by an engine with these sinks. The learned one counts as one."""
    build = BuildConfig(
        max_batch_size=1,
        max_attention_window=size.context // 2,
        sink_token_length=sinks,
        max_sink_token_length=sinks,
        sink_token=SINK if has_sink and sinks else None,
        dtype="float32",
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "engine"
        with progress_bar("tensors") as progress:
            build_cpu_engine(open_checkpoint(checkpoint), build, engine, progress)
        run = Run(f"{checkpoint.name}, S = {sinks}", "streaming", sinks, build.max_attention_window)
        report = run_report(score_run(run, open_subject(engine, None), TokenFile(text.with_suffix(".ids")), None))
    found: float = report["perplexity"]
    return found


@torch.inference_mode()
def attention_to_first(checkpoint: Path, ids: np.ndarray, size: Size, has_sink: bool) -> list[float]:
    """Of each layer: the share of attention that goes to the first token, from tokens in the second half of a context.

    Means over heads and over contexts at equal distances in ``ids``. The first token is the sink, if there is one.
    """
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(checkpoint, attn_implementation="eager", dtype=torch.float32)
    places = np.linspace(0, len(ids) - size.context, SAMPLES).astype(int)
    samples = torch.from_numpy(np.stack([ids[place : place + size.context] for place in places])).long()
    if has_sink:
        samples = torch.cat([samples.new_full((SAMPLES, 1), SINK), samples], dim=1)
    attentions = model(samples, output_attentions=True).attentions
    return [layer[:, :, size.context // 2 :, 0].mean().item() for layer in attentions]


def rows(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each kind of model: means over the seeds."""
    lines = []
    for has_sink in (False, True):
        of_kind = [model for model in models if model["has_sink"] == has_sink]
        lines.append(
            {
                "trained": "with a learned sink" if has_sink else "as usual",
                **{f"S = {s}": f"{mean(m['perplexity'][s] for m in of_kind):.2f}" for s in SINKS},
                "attention to the first token, by layer": ", ".join(
                    f"{mean(layer):.1%}" for layer in zip(*(m["attention_to_first"] for m in of_kind), strict=True)
                ),
            }
        )
    return lines


def draw(path: Path, models: list[dict[str, Any]]) -> None:
    """Perplexity by number of sink tokens: a line for each model."""
    with picture(path, "Sink tokens of models that were trained with one, and without", from_zero=False) as axis:
        for model in models:
            kind, color = ("with a learned sink", "tab:blue") if model["has_sink"] else ("as usual", "tab:orange")
            label = f"trained {kind}" if model["seed"] == 0 else None
            axis.plot(SINKS, [model["perplexity"][sinks] for sinks in SINKS], marker="o", color=color, label=label)
        axis.set(xlabel="sink tokens", ylabel="perplexity of held-out text", xticks=SINKS)
        axis.legend()


if __name__ == "__main__":
    main()
