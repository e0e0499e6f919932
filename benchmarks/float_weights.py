"""What do weights in 16, 8 and 4 bits cost a model whose weights have never been rounded?

SmolLM2's file has weights in 4 bits, which a conversion to 4 bits finds again. So this takes the Llamas that
`benchmarks.trained_sink` has trained as usual, and the text that it has held out, from its ``--work`` folder:

    python -m benchmarks.float_weights FOLDER --json benchmarks/results/float_weights.json
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import write_json
from benchmarks.markdown import table
from benchmarks.trained_sink.perplexity import perplexity
from trtstream.build.checkpoint import open_checkpoint
from trtstream.machine import machine
from trtstream.settings import BuildConfig

WINDOW = 128  # tokens
# Of each format the dtype and the quantization. The cache is in float32 beside blocks, so that it costs nothing.
FORMATS = {
    "float32": ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    "int8": ("float32", "int8"),
    "int4": ("float32", "int4"),
}


def measure(checkpoint: Path, text: Path) -> dict[str, float]:
    """The perplexity by format."""
    build = BuildConfig(max_batch_size=1, max_attention_window=WINDOW)
    return {
        name: perplexity(checkpoint, text, replace(build, dtype=dtype, quantization=quantization))
        for name, (dtype, quantization) in FORMATS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the --work folder of benchmarks.trained_sink")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    checkpoints = sorted(arguments.folder.glob("*-usual-?"))
    if not checkpoints:
        sys.exit(f"float_weights: {arguments.folder} has no model that benchmarks.trained_sink trained; run it first")
    models = {path.name: measure(path, arguments.folder / "held_out.txt") for path in checkpoints}
    print(
        table(
            {"model": name, **{key: f"{value:.3f}" for key, value in found.items()}} for name, found in models.items()
        )
    )
    write_json(
        arguments.json,
        {
            "checkpoint": f"{len(models)} models of {open_checkpoint(checkpoints[0]).model.hidden_size} features",
            "machine": machine(),
            "max_attention_window": WINDOW,
            "models": models,
        },
    )


if __name__ == "__main__":
    main()
