"""How fast is this engine compared with its peers, and how near is it to the memory's limit?

Steps all contestants in turn, each in a process of its own, past the window and along the same text. All that is timed
is also checked: the table says by how much a contestant's predictions differ from this engine's.

    python -m benchmarks.compare CHECKPOINT --text FILE

Peers: recompute (a dense pass over the last W tokens for each token, by transformers where it can), the paper's method
(the whole cache is rotated at each step; in our own few lines of torch), and llama.cpp where llama-cpp-python is
installed and the checkpoint is a .gguf file: in its own format, Q8_0 and F16, discarding one token at a time (which is
StreamingLLM) or half of them, and 4 and 8 sessions at a time; OpenVINO GenAI where openvino-genai is, which reads the
same file; and ExecuTorch's positions in our own torch, for their quality. A step's floor is the time in which its
weights and visible KV cache can be read, at the measured bandwidth. Prompts are those of new sessions.

    python -m benchmarks.compare CHECKPOINT --text FILE --leave-out recompute,rotation,ExecuTorch

leaves out what takes long. A large model and its peers may not fit into memory together: leave out `float32,sessions`.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks import write_json
from benchmarks.compare.entries import MEMORY, STEPS, Entry, our_entries, peer_entries
from benchmarks.compare.findings import bandwidth, cells, chunked_evaluation, evaluation_line, rows, verdicts
from benchmarks.compare.measure import measure, plan
from benchmarks.compare.picture import plot
from benchmarks.markdown import table
from trtstream.errors import TrtstreamError
from trtstream.output_file import OutputFile, PlotFile

if TYPE_CHECKING:
    from trtstream.build.checkpoint import Checkpoint


def words(_context: click.Context, _option: click.Parameter, value: str) -> list[str]:
    return [word.strip() for word in value.split(",") if word.strip()]


def without(entries: list[Entry], left_out: list[str]) -> list[Entry]:
    """Those whose names have none of the words. Raises TrtstreamError for a word that no name has."""
    for word in left_out:
        if not any(word in entry.name for entry in entries):
            names = ", ".join(entry.name for entry in entries)
            raise TrtstreamError(f"no contestant has {word!r} in its name, so none is left out; there are {names}")
    return [entry for entry in entries if not any(word in entry.name for word in left_out)]


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
    help="The text to decode.  [default: random token ids]",
)
@click.option("--leave-out", default="", metavar="WORDS", callback=words, help="Contestants with these in their names.")
@click.option("--max-attention-window", default=512, show_default=True, type=click.IntRange(16))
@click.option("--sink-token-length", default=4, show_default=True, type=click.IntRange(0))
@click.option("--rounds", default=16, show_default=True, type=click.IntRange(1), help=f"Turns of {STEPS} tokens each.")
@click.option("--threads", type=click.IntRange(1), help="Threads of each contestant.  [default: all cores]")
@click.option("--json", "json_file", type=OutputFile())
@click.option("--plot", "plot_file", type=PlotFile())
def compare(
    checkpoint: Path,
    text: Path | None,
    leave_out: list[str],
    max_attention_window: int,
    sink_token_length: int,
    rounds: int,
    threads: int | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Time this engine and its peers on CHECKPOINT (a Hugging Face folder or a .gguf file), in turn."""
    from trtstream.build.checkpoint import open_checkpoint
    from trtstream.machine import machine

    window, sinks = max_attention_window, sink_token_length
    threads = len(os.sched_getaffinity(0)) if threads is None else threads
    parts = plan(window, rounds)
    num_tokens = sum(part.rounds * part.tokens for part in parts) + 1  # the last is predicted only
    source = open_checkpoint(checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        ours = our_entries(checkpoint, source, window, sinks, Path(scratch))
        others = peer_entries(checkpoint, source, window, sinks, Path(scratch))
        entries = without([*ours, *others], leave_out)
        num_ours = sum(entry in ours for entry in entries)
        if not num_ours:
            raise TrtstreamError("the peers are compared with this engine; do not leave out all its formats")
        ids = token_ids(source, text, num_tokens, Path(scratch))
        floor, *records = measure([MEMORY, *entries], 1 + num_ours, ids, parts, threads)
    bytes_per_s = bandwidth(floor)
    found = rows(records, bytes_per_s, window)
    evaluation = chunked_evaluation(found, records[0])
    values: dict[str, Any] = {
        "checkpoint": checkpoint.name,
        "text": "random token ids" if text is None else text.name,
        "sink_token_length": sinks,
        "max_attention_window": window,
        "threads": threads,
        "rounds": rounds,
        "memory_gb_per_s": bytes_per_s / 1e9,
        "contestants": found,
        "chunked_evaluation": evaluation,
        "verdicts": verdicts(found, num_ours),
        "machine": machine(),
    }
    write_json(json_file, values)
    if plot_file is not None:
        plot(plot_file, f"A decode step of {checkpoint.name}, window {window}, {threads} threads", found)
    click.echo(table(cells(row, found[0]) for row in found))
    for line in ([evaluation_line(evaluation)] if evaluation else []) + values["verdicts"]:
        click.echo(line)


def token_ids(checkpoint: Checkpoint, text: Path | None, count: int, scratch: Path) -> list[int]:
    """``count`` ids, of the text or at random. Raises TrtstreamError for a text that has fewer."""
    if text is None:
        import numpy as np

        return np.random.default_rng(0).integers(checkpoint.model.vocab_size, size=count).tolist()
    from trtstream.evaluation.tokens import tokenize
    from trtstream.runtime.tokenizer import load_tokenizer

    folder = scratch / "tokenizer"
    tokenizer = load_tokenizer(folder) if checkpoint.save_tokenizer(folder) else None
    if tokenizer is None:
        raise TrtstreamError("the checkpoint has no tokenizer to read a text with; leave out --text")
    ids = tokenize(text, tokenizer, checkpoint.model.vocab_size, scratch / "ids", count)
    if ids.count < count:
        raise TrtstreamError(f"{text} has {ids.count} tokens, and this takes {count}; use fewer --rounds")
    return ids.read(0, count).tolist()


def main() -> None:
    """Run the command line: exit 0 (done), 1 (the work failed) or 2 (bad usage)."""
    # Unwind on SIGTERM too, so that processes and temporary files go.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        compare()
    except (TrtstreamError, OSError) as error:
        click.echo(f"compare: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
