"""Writes docs/results.md from the JSON files in benchmarks/results/:

    python -m benchmarks.report

The same files give the same document, byte for byte. Each section names the command that makes its JSON and picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import paper
from benchmarks.compare import findings

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "results.md"
CHECKPOINT = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = '$(python -c "from trtstream.samples.smollm2 import fetch_smollm2 as f; print(f())")'
KING_JAMES = '$(python -c "from trtstream.samples.king_james import fetch_king_james as f; print(f())")'
GPL = "/usr/share/common-licenses/GPL-3"
LLAMA_CPP_BUILD = """\
export CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON
  -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"
pip install 'trtstream[compare]'"""

Values = dict[str, Any]

HEAD = f"""\
# Results

Written by `python -m benchmarks.report` from the JSON files in [benchmarks/results](../benchmarks/results); each
section says what makes its own. The engine is that of the `cpu` target, and in the commands

```text
SMOLLM2={SMOLLM2}
KING_JAMES={KING_JAMES}
```

The paper's own figures ([arXiv:2309.17453]({paper.ADDRESS})) stand beside ours. Most of its models
are 50 times larger or more, and its texts are others: compare the shapes of the curves, not the values.

No GPU has run trtstream yet.
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
    ours = {run["sink_token_length"]: f"{run['perplexity']:.3f}" for run in values["sweep"]}
    theirs = zip(*paper.SINKS.values(), strict=True)
    rows = [(count, ours[count], *row) for count, row in zip(paper.SINK_TOKENS, theirs, strict=True)]
    learned = zip(paper.LEARNED_SINK_TOKENS, *paper.LEARNED_SINK.values(), strict=True)
    return [
        "Without sink tokens perplexity jumps. One does nearly all for SmolLM2, as for three of the paper's four "
        "models (its Table 2: 400,000 tokens of PG19, windows of 2,048, and of 4,096 for Llama-2-7B); Llama-2-7B needs "
        "four, and none gains much from more: four is the default.",
        "",
        *table(("sink tokens", f"SmolLM2-135M, W = {values['sweep'][0]['max_attention_window']}", *paper.SINKS), rows),
        "",
        "One suffices where a model was trained with a sink token of its own (`--sink-token`): the paper's Table 3, "
        "models with 160 million parameters, a window of 1,024, PG19. No such checkpoint has run here.",
        "",
        *table(("sink tokens", *paper.LEARNED_SINK), learned),
    ]


def windows(values: Values) -> list[str]:
    rows = [(f"{run['max_attention_window']:,}", f"{run['perplexity']:.3f}") for run in values["sweep"]]
    return [
        f"{values['sweep'][0]['sink_token_length']} sink tokens are among a window's. Memory grows in proportion to "
        "it, and what that buys becomes less and less.",
        "",
        *table(("window", "perplexity"), rows),
    ]


def methods(values: Values) -> list[str]:
    recompute = values["methods"]["recompute"]
    sampled = f"of every {recompute['every']}th token"
    rows = [
        (
            name,
            run["max_attention_window"],
            f"{run['perplexity']:.3f}" if run["every"] == 1 else "",
            f"{run['perplexity_at_sampled']:.3f}",
            paper.METHODS[name],
        )
        for name, run in values["methods"].items()
    ]
    return [
        "`dense` sees everything before, `recompute` makes a new dense pass over the last tokens for each token, "
        f"`window` keeps recent tokens only. `recompute` is slow, and predicts {recompute['predictions']} tokens here; "
        "over these the others are given too, and compare with it. The paper's are of Llama-2-13B on the first book "
        "(65,000 tokens) of PG19, with a window of 1,024 (its Figure 1 and Table 1); that text is longer than the "
        "model's context, where `dense` fails too.",
        "",
        *table(("method", "window", "perplexity", sampled, "the paper's"), rows),
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
        f"{run['sink_token_length']} sink tokens, {values['dtype']}; the paper goes to 4 million with larger models "
        f"(its Figure 5). Perplexity {run['perplexity']:.2f}. Over the second half, resident memory is between "
        f"{min(half) / 1e6:,.1f} and {max(half) / 1e6:,.1f} MB. Loss follows the text, whose first book is easier than "
        "the rest; the next section tells the text from the session.",
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
    def accuracy(in_window: bool) -> float:
        answers = [answer for answer in values["recall"] if answer["in_window"] == in_window]
        return sum(answer["right"] for answer in answers) / sum(answer["questions"] for answer in answers)

    window, sinks = values["max_attention_window"], values["sink_token_length"]
    rows = [
        (
            f"{answer['distance']:,}",
            "yes" if answer["in_window"] else "no",
            f"{answer['right']} of {answer['questions']}",
        )
        for answer in values["recall"]
    ]
    return [
        'Facts such as "The brave otter lives in Rome." are planted in the text and asked for later, greedily. '
        f"Guessing one of the places gives {values['chance']:.0%}. Of what is in the window, {window - sinks} recent "
        f"tokens beside the sink tokens, the model recalls {accuracy(True):.0%}, the better the nearer; of what has "
        f"left it {accuracy(False):.0%}. Sink tokens keep attention stable and remember nothing else: what must stay "
        "known goes into `system`, which is pinned, or into a turn again.",
        "",
        *table(("tokens back", "in the window", "right"), rows),
        "",
        "The same edge in the paper's Table 7: accuracy (%) of Llama-2-7B-32K-Instruct on StreamEval, with 4 sink "
        "tokens. Its Figure 9 asks 20 lines back, and finds reasonable accuracy up to about 120,000 tokens of input.",
        "",
        *table(
            ("tokens back", *(f"window of {window:,}" for window in paper.RECALL_WINDOWS)),
            ((f"{distance:,}", *row) for distance, row in paper.RECALL.items()),
        ),
    ]


def flatness(values: Values) -> list[str]:
    decode, history = values["decode"], values["history"]
    return [
        f"One session is fed {history[-1]['position']:,} tokens ({values['dtype']}, a window of "
        f"{values['max_attention_window']}); resident memory is at most {values['resident_growth']:.2%} above its "
        f"first sample. Then it is stepped in turn with a young one: {decode['old_ms']:.1f} ms against "
        f"{decode['young_ms']:.1f} ms a token (medians of {decode['steps']}), ratio {decode['old_to_young']:.3f}.",
    ]


def paper_latency() -> list[str]:
    """The paper's decode latency, which needs a GPU to be compared with."""
    rows = (
        (f"{window:,}", *(cell for by_window in paper.LATENCY.values() for cell in _latencies(*by_window[window])))
        for window in paper.LATENCY["Llama-2-7B"]
    )
    names = [f"{model}: {name}" for model in paper.LATENCY for name in ("recompute", "streaming", "ratio")]
    return [
        "",
        "## Decode latency: the paper's",
        "",
        "Milliseconds per token on one NVIDIA A6000 with Hugging Face Transformers (its Figure 10). What trtstream "
        "takes on a GPU, beside recompute, is for `python -m benchmarks.gpu` to say: unverified.",
        "",
        *table(("window", *names), rows),
    ]


def _latencies(recompute: int, streaming: int) -> tuple[str, str, str]:
    return f"{recompute:,}", str(streaming), f"{recompute / streaming:.1f}"


def compare(values: Values) -> list[str]:
    evaluation = values["chunked_evaluation"]
    return [
        f"One session past its window of {values['max_attention_window']} tokens, {values['sink_token_length']} sink "
        f"tokens among them, {values['threads']} threads. All contestants step in turn in one run, each in a process "
        "of its own. The floor is what a step must read, weights and visible KV cache, at the "
        f"{values['memory_gb_per_s']:.1f} GB/s that the memory gave in between. All decode the same text: the loss "
        "column says by how many nats a token they predict it worse than trtstream in float32.",
        "",
        *table(findings.COLUMNS, findings.cells(values["contestants"])),
        "",
        *([findings.evaluation_line(evaluation), ""] if evaluation else []),
        " ".join(values["verdicts"]),
        "",
        "llama.cpp is compiled, which takes minutes, for what a native build finds here, but never for AMX: that "
        "crashes it where the CPU advertises AMX and the system does not permit it.",
        "",
        "```text",
        LLAMA_CPP_BUILD,
        "```",
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
        "windows",
        "How large a window?",
        f'trtstream eval "$SMOLLM2" --text {GPL} --tokens 4000 --sweep-window 128,256,512,1024,2048',
        windows,
    ),
    Section(
        "methods",
        "Streaming beside dense, window and recompute",
        f"{EVAL} --text {GPL} --tokens 4000 --method streaming,window,dense,recompute --every 20",
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
        'python -m benchmarks.drift "$SMOLLM2" --text "$KING_JAMES" --losses losses/streaming.f32',
        drift,
        has_picture=False,
    ),
    Section(
        "recall",
        "What a window remembers",
        f'{EVAL} --text "$KING_JAMES" --recall 20,100,400,1000,100000 --facts 128',
        recall,
    ),
    Section(
        "flatness",
        "Constant memory, constant latency",
        "python -m benchmarks.flatness ENGINE --tokens 200000",
        flatness,
        has_picture=False,
    ),
    Section(
        "compare",
        "Beside its peers",
        f'python -m benchmarks.compare "$SMOLLM2" --text {GPL}',
        compare,
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
    return "\n".join([HEAD.rstrip(), *(line for entry in SECTIONS for line in section(entry)), *paper_latency(), ""])


def main() -> None:
    DOCUMENT.write_text(document())


if __name__ == "__main__":
    main()
