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
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks import write_json
from benchmarks.markdown import table
from benchmarks.trained_sink.perplexity import perplexity
from benchmarks.trained_sink.training import SINK, SIZES, Size, split, token_ids, train_tokenizer, trained
from trtstream.evaluation.plot import picture
from trtstream.machine import machine
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
                    "perplexity": {
                        sinks: perplexity(folder, held_out, build_config(size, sinks, has_sink)) for sinks in SINKS
                    },
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


def build_config(size: Size, sinks: int, has_sink: bool) -> BuildConfig:
    """A float32 engine with these sinks and half of the trained context. The learned sink counts as one."""
    return BuildConfig(
        max_batch_size=1,
        max_attention_window=size.context // 2,
        sink_token_length=sinks,
        max_sink_token_length=sinks,
        sink_token=SINK if has_sink and sinks else None,
        dtype="float32",
    )


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
