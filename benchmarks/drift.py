"""Is a session worse after a million tokens, or is the text harder there? Fresh sessions tell.

Takes the losses of a long ``trtstream eval --keep FOLDER`` run, starts a new session a little before each of several
places of the same text, and compares the losses of both on the same tokens:

    python -m benchmarks.drift CHECKPOINT --text FILE --losses FOLDER/streaming.f32 --json benchmarks/results/drift.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import write_json
from trtstream.evaluation.engines import open_subject
from trtstream.evaluation.tokens import tokenize
from trtstream.machine import machine

TOKENS = 4096  # compared at each place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--losses", type=Path, required=True)
    parser.add_argument("--places", type=int, default=8)
    parser.add_argument("--max-attention-window", type=int, default=512)
    parser.add_argument("--sink-token-length", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    long = np.fromfile(arguments.losses, dtype="<f4").astype(np.float64)  # the i-th is token i + 1's
    subject = open_subject(arguments.checkpoint, arguments.dtype)
    window = arguments.max_attention_window
    engine = subject.engine(arguments.sink_token_length, window)
    # A fresh session's tokens depend on nothing older after as many tokens as fill its window several times over.
    before = 8 * window
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ids = tokenize(arguments.text, subject.tokenizer, subject.model.vocab_size, Path(folder) / "ids", len(long) + 1)
        for place in np.linspace(before, ids.count - TOKENS, arguments.places).astype(int).tolist():
            engine.reset(0)
            fresh = -engine.score(0, ids.read(place - before, place + TOKENS).tolist()).cpu().numpy()[before:]
            old = long[place - 1 : place - 1 + TOKENS]
            rows.append({"position": place, "long_session": old.mean(), "fresh_session": fresh.astype(float).mean()})
            print(f"{place:>9,}: {old.mean():.4f} {fresh.mean():.4f}", file=sys.stderr)
    result = {
        "checkpoint": arguments.checkpoint.name,
        "text": arguments.text.name,
        "dtype": subject.dtype,
        "sink_token_length": arguments.sink_token_length,
        "max_attention_window": window,
        "tokens_at_each_place": TOKENS,
        "places": rows,
        "machine": machine(),
    }
    difference = np.mean([row["long_session"] - row["fresh_session"] for row in rows])
    print(f"the long session's mean loss is {difference:+.4f} nats from fresh ones' on the same tokens")
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
