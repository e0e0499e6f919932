"""Writes docs/results.md from the JSON files in benchmarks/results/:

    python benchmarks/report.py

The same files give the same document, byte for byte. Each section names the command that makes its JSON and picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "results.md"
CHECKPOINT = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = '$(python -c "from trtstream.smollm2 import fetch_smollm2 as f; print(f())")'
KING_JAMES = '$(python -c "from trtstream.king_james import fetch_king_james as f; print(f())")'
GPL = "/usr/share/common-licenses/GPL-3"

Values = dict[str, Any]

HEAD = f"""\
# Results

Written by `python benchmarks/report.py` from the JSON files in [benchmarks/results](../benchmarks/results); each
section says what makes its own. The engine is that of the `cpu` target, and in the commands

```text
SMOLLM2={SMOLLM2}
KING_JAMES={KING_JAMES}
```

No GPU has run trtstream yet, and peers are not measured yet. What `benchmarks/gpu.py` will say is decode latency
against recompute: the paper ([arXiv:2309.17453](https://arxiv.org/abs/2309.17453)) gives 31 ms against 63 ms in a
window of 256 tokens, and 65 ms against 1,411 ms in one of 4,096, 22.2 times as long.
"""


@dataclass(frozen=True)
class Section:
    """A section: ``write`` makes its text of the values in ``name``.json; ``name``.png is its picture if it has one."""

    name: str
    title: str
    command: str
    write: Callable[[Values], list[str]]
    has_picture: bool = True


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [names, ["---"] * len(names), *([str(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def sinks(values: Values) -> list[str]:
    rows = [
        (run["sink_token_length"], run["max_attention_window"] - run["sink_token_length"], f"{run['perplexity']:.3f}")
        for run in values["sweep"]
    ]
    return [
        "Without sink tokens perplexity jumps; one does nearly all, and more than four change nothing. The paper finds "
        "the same, keeps four, and shows that one suffices where a model was trained with a sink token of its own "
        "(`--sink-token`).",
        "",
        *table(("sink tokens", "recent tokens", "perplexity"), rows),
    ]


def methods(values: Values) -> list[str]:
    def note(run: Values) -> str:
        return f"every {run['every']}th token" if run["every"] > 1 else ""

    rows = [
        (name, run["max_attention_window"], f"{run['perplexity']:.3f}", f"{run['predictions']:,}", note(run))
        for name, run in values["methods"].items()
    ]
    return [
        "`dense` sees everything before, `recompute` makes a new dense pass over the last tokens for each token, "
        "`window` keeps recent tokens only. A sampled method's perplexity is that of its few tokens, and not to be "
        "compared.",
        "",
        *table(("method", "window", "perplexity", "predictions", "sampled"), rows),
    ]


def million(values: Values) -> list[str]:
    (run,) = values["methods"].values()
    resident = [sample["resident_bytes"] for sample in run["resident"]]
    half = resident[len(resident) // 2 :]
    shown = [point for number, point in enumerate(reversed(run["curve"])) if number % 8 == 0][::-1]
    rows = [
        (f"{point['first']:,} to {point['last']:,}", f"{point['loss']:.3f}", f"{point['perplexity_so_far']:.2f}")
        for point in shown
        if point["tokens"] >= 100
    ]
    return [
        f"{run['predictions']:,} tokens of one session, a window of {run['max_attention_window']} with "
        f"{run['sink_token_length']} sink tokens, {values['dtype']}; the paper goes to 4 million with larger models. "
        f"Perplexity {run['perplexity']:.2f}. Over the second half, resident memory is between {min(half) / 1e6:,.1f} "
        f"and {max(half) / 1e6:,.1f} MB. Loss follows the text, whose first book is easier than the rest; the next "
        "section tells the text from the session.",
        "",
        *table(("tokens", "mean loss (nats)", "perplexity so far"), rows),
    ]


def drift(values: Values) -> list[str]:
    places = values["places"]
    rows = [(f"{row['position']:,}", f"{row['long_session']:.4f}", f"{row['fresh_session']:.4f}") for row in places]
    differences = [row["long_session"] - row["fresh_session"] for row in places]
    return [
        f"The mean loss of {values['tokens_at_each_place']:,} tokens at several places of the same text, in the "
        "session of a million tokens and in a session that began shortly before. On average the long session's is "
        f"{sum(differences) / len(differences):+.4f} nats from the fresh ones'; the largest difference is "
        f"{max(differences, key=abs):+.4f}.",
        "",
        *table(("position", "session from token 0", "fresh session"), rows),
    ]


def recall(values: Values) -> list[str]:
    rows = [
        (
            f"{answer['distance']:,}",
            "yes" if answer["in_window"] else "no",
            f"{answer['right']} of {answer['questions']}",
        )
        for answer in values["recall"]
    ]
    return [
        'Facts such as "The brave otter lives in Rome." are planted in the text and asked for later, greedily. A '
        f"window remembers what is in it and nothing else: of {values['max_attention_window']} tokens here. Guessing "
        f"gives {values['chance']:.0%}.",
        "",
        *table(("tokens back", "in the window", "right"), rows),
    ]


def flatness(values: Values) -> list[str]:
    decode, history = values["decode"], values["history"]
    return [
        f"One session is fed {history[-1]['position']:,} tokens ({values['dtype']}, a window of "
        f"{values['max_attention_window']}); resident memory is at most {values['resident_growth']:.2%} above its "
        f"first sample. Then it is stepped in turn with a young one: {decode['old_ms']:.1f} ms against "
        f"{decode['young_ms']:.1f} ms a token (medians of {decode['steps']}), ratio {decode['old_to_young']:.3f}.",
    ]


EVAL = 'trtstream eval "$SMOLLM2" --max-attention-window 512'
SECTIONS = (
    Section(
        "sinks",
        "How many sink tokens?",
        f"{EVAL} --text {GPL} --tokens 4000 --sweep-sinks 0,1,2,4,8",
        sinks,
    ),
    Section(
        "methods",
        "Streaming beside dense, window and recompute",
        f"{EVAL} --text {GPL} --tokens 4000 --method streaming,window,dense,recompute --every 100",
        methods,
    ),
    Section(
        "million",
        "A million tokens",
        f'{EVAL} --text "$KING_JAMES" --tokens 1000000 --dtype bfloat16 --losses losses --resume',
        million,
    ),
    Section(
        "drift",
        "Does age harm a session?",
        'python benchmarks/drift.py "$SMOLLM2" --text "$KING_JAMES" --losses losses/streaming.f32',
        drift,
        has_picture=False,
    ),
    Section(
        "recall", "What a window remembers", f'{EVAL} --text "$KING_JAMES" --recall 20,100,1000,3000 --facts 16', recall
    ),
    Section(
        "flatness",
        "Constant memory, constant latency",
        "python benchmarks/flatness.py ENGINE --tokens 200000",
        flatness,
        has_picture=False,
    ),
)


def section(entry: Section) -> list[str]:
    values = json.loads((RESULTS / f"{entry.name}.json").read_text())
    machine = values["machine"]
    files = f"--json benchmarks/results/{entry.name}.json"
    picture = []
    if entry.has_picture:
        files += f" --plot benchmarks/results/{entry.name}.png"
        picture = ["", f"![{entry.title}](../benchmarks/results/{entry.name}.png)"]
    where = (
        f"{values.get('checkpoint', CHECKPOINT)}, {machine['cores']} cores of an {machine['cpu']}, "
        f"torch {machine['torch']}, {machine['date']}; [JSON](../benchmarks/results/{entry.name}.json)"
    )
    command = f"{entry.command} {files}"
    return ["", f"## {entry.title}", "", *entry.write(values), *picture, "", f"`{command}`  ", f"{where}."]


def document() -> str:
    return "\n".join([HEAD.rstrip(), *(line for entry in SECTIONS for line in section(entry)), ""])


def main() -> None:
    DOCUMENT.write_text(document())


if __name__ == "__main__":
    main()
