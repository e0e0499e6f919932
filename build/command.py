"""``trtstream build``."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trtstream.errors import TrtstreamError
from trtstream.settings import DTYPE_BYTES, QUANTIZATIONS, TARGETS, BuildConfig

if TYPE_CHECKING:
    from trtstream.build.plan import MemoryPlan
    from trtstream.engine_dir import EngineConfig
    from trtstream.settings import ModelConfig

DEFAULTS = BuildConfig()

# Each builder is called with the checkpoint, the build's settings, the output folder and a progress callback.
BUILDERS = {
    "cpu": "trtstream.build.cpu:build_cpu_engine",
    "cuda": "trtstream.build.cuda:build_cuda_engine",
    "tensorrt": "trtstream.build.tensorrt.engine:build_tensorrt_engine",
    "tensorrt-rtx": "trtstream.build.tensorrt.engine:build_tensorrt_rtx_engine",
    "tensorrt-llm": "trtstream.build.tensorrt_llm.target:build_tensorrt_llm_engine",
}


@click.command()
@click.argument("checkpoint")
@click.option("--revision", help="Branch, tag or commit of a repository on the Hugging Face hub.  [default: main]")
@click.option("--output", type=click.Path(path_type=Path), help="The engine directory to write.  [required]")
@click.option(
    "--target",
    type=click.Choice(["auto", *BUILDERS]),
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
    help=f"[default: {', '.join(f'{TARGETS[name].dtypes[0]} for {name}' for name in BUILDERS)}]",
)
@click.option("--quantization", type=click.Choice(QUANTIZATIONS), default="none", show_default=True)
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
@click.option("--dry-run", is_flag=True, help="Print the plan of memory and write nothing; needs no --output, no GPU.")
@click.option(
    "--gpu-memory", type=click.FloatRange(0, min_open=True), help="GB: print how many sessions fit into so much memory."
)
def build(
    checkpoint: str,
    revision: str | None,
    output: Path | None,
    target: str,
    sink_token_length: int,
    max_sink_token_length: int | None,
    max_attention_window: int | None,
    dtype: str | None,
    quantization: str,
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
    from trtstream.build.hub import local_checkpoint
    from trtstream.build.plan import plan_memory
    from trtstream.engine_dir import TOKENIZER, directory_bytes
    from trtstream.inspect_engine import model_rows
    from trtstream.machine import peak_memory
    from trtstream.plugins.tensorrt_library import LIBRARIES
    from trtstream.progress import progress_bar
    from trtstream.tables import print_values

    if output is None and not dry_run:
        raise click.UsageError("Missing option '--output'.")
    started = time.perf_counter()
    target = best_target() if target == "auto" else target
    if target in LIBRARIES and not dry_run:
        from trtstream.build.tensorrt.engine import load_builder

        load_builder(target)
    source = open_checkpoint(local_checkpoint(checkpoint, revision))
    model = source.model
    settings = BuildConfig(
        max_batch_size=max_batch_size,
        max_num_tokens=max_num_tokens,
        max_attention_window=max_attention_window or min(DEFAULTS.max_attention_window, model.max_position_embeddings),
        sink_token_length=sink_token_length,
        max_sink_token_length=sink_token_length if max_sink_token_length is None else max_sink_token_length,
        dtype=dtype or TARGETS[target].dtypes[0],
        quantization=quantization,
        sink_token=sink_token,
        tp_size=tp_size,
        pp_size=pp_size,
        tensorrt_llm_version=tensorrt_llm_version,
        max_seq_len=max_seq_len,
    )
    settings.validate(target)
    check_against_model(settings, model, force)
    if sink_token_length == 0:
        click.echo("warning: without sink tokens quality collapses once the first token leaves the window", err=True)
    plan = plan_memory(source, settings, target)
    if dry_run:
        print_values([("target", target), *model_rows(model, settings), *plan_rows(plan, gpu_memory)])
        return
    with progress_bar("Building" if target in LIBRARIES else "Writing weights") as progress:
        builder(target)(source, settings, output, progress)
    if not (output / TOKENIZER).is_dir():
        click.echo("warning: the checkpoint has no tokenizer, so the engine takes input_ids and no text", err=True)
    print_values(plan_rows(plan, gpu_memory))
    seconds, peak = time.perf_counter() - started, peak_memory() / 1e9
    click.echo(
        f"{output}: {directory_bytes(output) / 1e6:.1f} MB for target {target} in {seconds:.1f} s, "
        f"{peak:.1f} GB of memory at most"
    )


def plan_rows(plan: MemoryPlan, gpu_memory: float | None) -> list[tuple[str, str]]:
    """A plan of memory for `print_values`; with how many sessions fit into ``gpu_memory`` GB, if given."""
    from trtstream.inspect_engine import megabytes

    in_all = f"{megabytes(plan.sessions * plan.kv_cache_per_session)} for {plan.sessions}"
    rows = [
        ("memory: weights", megabytes(plan.weights)),
        ("memory: KV cache", f"{megabytes(plan.kv_cache_per_session)} a session, {in_all}"),
        (
            "memory: workspace",
            "no estimate for this target" if plan.workspace is None else f"about {megabytes(plan.workspace)}",
        ),
        ("memory: total", f"{megabytes(plan.total)}, however long the conversations get"),
        ("memory: build", f"about {megabytes(plan.build)} of this machine's"),
    ]
    if gpu_memory is not None:
        rows.append((f"sessions in {gpu_memory:g} GB", str(plan.sessions_in(int(gpu_memory * 1e9)))))
    return rows


def best_target() -> str:
    """What ``--target auto`` means on this machine."""
    from trtstream.plugins.cuda_device import why_no_cuda
    from trtstream.plugins.tensorrt_library import why_no_tensorrt

    if why_no_tensorrt("tensorrt") is None:
        return "tensorrt"
    return "cpu" if why_no_cuda() else "cuda"


def builder(target: str) -> Callable[..., EngineConfig]:
    """The function that writes an engine for ``target``."""
    module, _, function = BUILDERS[target].partition(":")
    return getattr(importlib.import_module(module), function)


def check_against_model(settings: BuildConfig, model: ModelConfig, force: bool) -> None:
    """Raise TrtstreamError where the sizes do not suit the checkpoint."""
    window, trained = settings.max_attention_window, model.max_position_embeddings
    if window > trained and model.rope is not None and model.rope.kind == "dynamic":
        raise TrtstreamError(
            f"--max-attention-window {window} is beyond the checkpoint's context of {trained}, and its dynamic RoPE "
            f"scaling would depend on the length there; use at most {trained}"
        )
    if window > trained and not force:
        raise TrtstreamError(
            f"--max-attention-window {window} is beyond the checkpoint's trained context of {trained}; use at most "
            f"{trained}, or --force"
        )
    if settings.sink_token is not None:
        if not 0 <= settings.sink_token < model.vocab_size:
            raise TrtstreamError(f"--sink-token {settings.sink_token} is outside the vocabulary of {model.vocab_size}")
        if settings.sink_token_length < 1:
            raise TrtstreamError("--sink-token needs --sink-token-length 1 or more")
