"""``trtstream build``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trtstream.settings import (
    DTYPE_BYTES,
    BuildConfig,
    TensorrtLlmOptions,
    check_against_model,
    default_window,
)
from trtstream.targets import KEPT, KV_DTYPES, QUANTIZATIONS, TARGETS, best_target

if TYPE_CHECKING:
    from trtstream.build.memory import MemoryEstimate

DEFAULTS = BuildConfig()


@click.command()
@click.argument("checkpoint", type=click.Path())
@click.option("--revision", help="Branch, tag or commit of a repository on the Hugging Face hub.  [default: main]")
@click.option("--output", type=click.Path(path_type=Path), help="The engine directory to write.  [required]")
@click.option(
    "--target",
    "chosen",
    type=click.Choice(["auto", *TARGETS]),
    default="auto",
    show_default=True,
    help="What runs the engine: auto takes the best that this machine can run.",
)
@click.option(
    "--sink-token-length",
    default=DEFAULTS.sink_token_length,
    show_default=True,
    help="Attention sinks: first tokens of a session that are never evicted.",
)
@click.option(
    "--max-sink-token-length",
    type=int,
    help="Room for sinks, for sessions that pin a system prompt.  [default: --sink-token-length]",
)
@click.option(
    "--max-attention-window",
    type=int,
    help=f"Tokens that a session keeps, sinks included.  [default: {DEFAULTS.max_attention_window}, or the "
    "checkpoint's context if that is shorter]",
)
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPE_BYTES)),
    help=f"[default: {', '.join(f'{formats.dtypes[0]} for {name}' for name, formats in TARGETS.items())}]",
)
@click.option(
    "--quantization",
    type=click.Choice([*QUANTIZATIONS, KEPT]),
    help="On cpu, kept leaves a .gguf file's blocks as they are, and int8 and int4 convert all other weights.  "
    "[default: none; on cpu, without --dtype, kept]",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(KV_DTYPES),
    help=f"{', '.join(name for name, formats in TARGETS.items() if formats.kv_dtypes)}: keep the KV cache in 8 bits.  "
    "[default: as --dtype]",
)
@click.option(
    "--max-batch-size", default=DEFAULTS.max_batch_size, show_default=True, help="Sessions that decode together."
)
@click.option(
    "--max-num-tokens", default=DEFAULTS.max_num_tokens, show_default=True, help="Tokens of one prefill chunk."
)
@click.option("--sink-token", type=int, help="Id of a learned sink token, put first in every session.")
@click.option("--tp-size", default=1, show_default=True, help="tensorrt-llm: GPUs that share each layer.")
@click.option("--pp-size", default=1, show_default=True, help="tensorrt-llm: groups of GPUs that share the layers out.")
@click.option(
    "--tensorrt-llm-version",
    help="tensorrt-llm: the release to convert for, such as 0.17.  [default: the installed one, or 0.17]",
)
@click.option(
    "--max-seq-len",
    type=click.IntRange(2),
    help="tensorrt-llm: tokens of a request, prompt and answer.  [default: the checkpoint's context, or two windows]",
)
@click.option("--force", is_flag=True, help="Allow a window beyond the checkpoint's trained context.")
@click.option("--dry-run", is_flag=True, help="Print the memory it takes and write nothing; needs no --output, no GPU.")
@click.option("--gpu-memory", type=click.FloatRange(0, min_open=True), help="GB: print how many sessions fit into it.")
def build(
    checkpoint: str,
    revision: str | None,
    output: Path | None,
    chosen: str,
    sink_token_length: int,
    max_sink_token_length: int | None,
    max_attention_window: int | None,
    dtype: str | None,
    quantization: str | None,
    kv_dtype: str | None,
    max_batch_size: int,
    max_num_tokens: int,
    sink_token: int | None,
    tp_size: int,
    pp_size: int,
    tensorrt_llm_version: str | None,
    max_seq_len: int | None,
    force: bool,
    dry_run: bool,
    gpu_memory: float | None,
) -> None:
    """Compile CHECKPOINT into an engine.

    CHECKPOINT is a Hugging Face folder, a .gguf file, a repository on the Hugging Face hub (owner/name), or a GGUF file
    in one (owner/name:FILE.gguf). The hub's cache, token and other settings are huggingface_hub's: HF_HOME, HF_TOKEN,
    HF_HUB_OFFLINE.
    """
    from trtstream.build.checkpoint import open_checkpoint
    from trtstream.build.cpu import default_quantization
    from trtstream.build.hub import local_checkpoint
    from trtstream.build.memory import estimate_memory
    from trtstream.engine_dir import TOKENIZER, directory_bytes
    from trtstream.inspect_engine import model_rows
    from trtstream.machine import peak_memory
    from trtstream.progress import progress_bar
    from trtstream.tables import print_values

    if output is None and not dry_run:
        raise click.UsageError("Missing option '--output'.")
    started = time.perf_counter()
    target = best_target() if chosen == "auto" else chosen
    if not dry_run:
        TARGETS[target].check_builder()
    source = open_checkpoint(local_checkpoint(checkpoint, revision))
    model = source.model
    if quantization is None:
        quantization = default_quantization(source, target) if dtype is None else "none"
    tensorrt_llm = TensorrtLlmOptions(tp_size, pp_size, tensorrt_llm_version, max_seq_len)
    asked = TARGETS[target].tensorrt_llm_options or tensorrt_llm != TensorrtLlmOptions()
    settings = BuildConfig(
        max_batch_size=max_batch_size,
        max_num_tokens=max_num_tokens,
        max_attention_window=default_window(model) if max_attention_window is None else max_attention_window,
        sink_token_length=sink_token_length,
        max_sink_token_length=sink_token_length if max_sink_token_length is None else max_sink_token_length,
        dtype=TARGETS[target].dtypes[0] if dtype is None else dtype,
        quantization=quantization,
        kv_dtype=kv_dtype,
        sink_token=sink_token,
        tensorrt_llm=tensorrt_llm if asked else None,
    )
    settings.validate(target)
    check_against_model(settings, model, force)
    if sink_token_length == 0:
        click.echo("warning: without sink tokens quality collapses once the first token leaves the window", err=True)
    memory = estimate_memory(source, settings, target)
    if output is None or dry_run:
        print_values([("target", target), *model_rows(model, settings), *_memory_rows(memory, gpu_memory)])
        return
    with progress_bar("Building") as progress:
        TARGETS[target].build(source, settings, output, progress)
    if not (output / TOKENIZER).is_dir():
        click.echo("warning: the checkpoint has no tokenizer, so the engine takes input_ids and no text", err=True)
    print_values(_memory_rows(memory, gpu_memory))
    seconds, peak = time.perf_counter() - started, peak_memory() / 1e9
    click.echo(
        f"{output}: {directory_bytes(output) / 1e6:.1f} MB for target {target} in {seconds:.1f} s, "
        f"{peak:.1f} GB of memory at most"
    )


def _memory_rows(memory: MemoryEstimate, gpu_memory: float | None) -> list[tuple[str, str]]:
    """The memory of an engine and of its build; with how many sessions fit into ``gpu_memory`` GB, if given."""
    from trtstream.inspect_engine import megabytes, memory_rows

    rows = [*memory_rows(memory), ("memory: build", f"about {megabytes(memory.build)} of this machine's")]
    if gpu_memory is not None:
        sessions = memory.sessions_in(int(gpu_memory * 1e9))
        bound = f"at most {sessions}, without room for the workspace" if memory.workspace is None else f"{sessions}"
        rows.append((f"sessions in {gpu_memory:g} GB", bound))
    return rows
